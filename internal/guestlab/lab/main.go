// Command lab fetches the lab's kernels and boots guests by hand, for developers and demos.
//
//	lab fetch [KERNEL…]            download kernels into the cache (default: those of the tests)
//	lab boot KERNEL [FLAGS]        boot one, print where it is, stay until Ctrl-C
//	lab xen [FLAGS]                boot a host that runs Xen, and domains on it
//	lab run NAME [SCRIPT]          run a shell script (default: standard input) in a guest that lab booted
//	lab put NAME FILE PATH         copy a file into one
//	lab list                       guests that lab booted
//	lab stop NAME                  end one
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"vmscope/internal/guestlab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	interrupted := ctx.Err() != nil
	stop()
	var status exitStatus
	switch {
	case err != nil && interrupted:
		os.Exit(130)
	case errors.As(err, &status):
		os.Exit(int(status))
	case err != nil:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(2)
	}
}

// exitStatus is the status of a script in the guest, passed on.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("status %d", int(s)) }

var errUsage = errors.New("usage: lab fetch [KERNEL…] | boot KERNEL [FLAGS] | xen [FLAGS] | run NAME [SCRIPT] | put NAME FILE PATH | list | stop NAME")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	switch cmd, args := args[0], args[1:]; {
	case cmd == "fetch":
		return fetch(ctx, args)
	case cmd == "boot" && len(args) > 0:
		return boot(ctx, args)
	case cmd == "xen":
		return xen(ctx, args)
	case cmd == "run" && len(args) == 2:
		return runIn(ctx, args[0], args[1])
	case cmd == "run" && len(args) == 1:
		script, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		return runIn(ctx, args[0], string(script))
	case cmd == "put" && len(args) == 3:
		return putIn(ctx, args[0], args[1], args[2])
	case cmd == "list" && len(args) == 0:
		return list()
	case cmd == "stop" && len(args) == 1:
		return stopGuest(args[0])
	}
	return errUsage
}

func fetch(ctx context.Context, kernels []string) error {
	all := len(kernels) == 0
	if all {
		kernels = append(guestlab.Kernels(), guestlab.OtherKernels()...)
	}
	for _, name := range kernels {
		began := time.Now()
		k, err := guestlab.Fetch(ctx, name)
		if all && errors.Is(err, guestlab.ErrNotBuilt) {
			fmt.Println(err)
			continue
		}
		if err != nil {
			return err
		}
		fmt.Printf("%-15s %-32s %s (%.1fs)\n", k.Name, k.Release, k.Dir, time.Since(began).Seconds())
	}
	return nil
}
