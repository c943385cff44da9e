// Command vmscope sees into virtual machines from outside: processes, modules,
// files, sockets and memory of a running guest or of a dump, without anything
// supplied.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"vmscope/vm/qemu"
)

func main() {
	// A paused guest must run again even if we are killed: the helper that sees
	// to it is this binary, started anew.
	qemu.RunResumeHelper()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	a := &app{out: os.Stdout, err: os.Stderr}
	status := a.run(ctx, os.Args[1:])
	if ctx.Err() != nil {
		status = statusInterrupted
	}
	stop()
	os.Exit(status)
}
