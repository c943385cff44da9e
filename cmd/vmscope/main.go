// Command vmscope sees into virtual machines from outside: processes, modules,
// files, sockets and memory of a running guest or of a dump, without anything
// supplied.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"vmscope/block/tap"
	"vmscope/vm/gdb"
	"vmscope/vm/qemu"
	"vmscope/vm/xen"
)

func main() {
	// A paused guest must run again even if we are killed: the helper that sees
	// to it is this binary, started anew.
	qemu.RunResumeHelper()
	xen.RunResumeHelper()
	gdb.RunResumeHelper()
	tap.Helper() // what receives a disk's writes is this binary, too

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go giveUp(ctx)
	a := &app{out: os.Stdout, err: os.Stderr}
	status := a.run(ctx, os.Args[1:])
	if ctx.Err() != nil {
		status = statusInterrupted
	}
	stop()
	os.Exit(status)
}

// patience is how long what was interrupted may take to end in order.
const patience = 5 * time.Second

// giveUp ends the program when an interrupt did not: it may hang in writing to
// a pipe that nobody reads. A guest that it paused is resumed by the helper.
func giveUp(ctx context.Context) {
	<-ctx.Done()
	time.Sleep(patience)
	os.Exit(statusInterrupted)
}
