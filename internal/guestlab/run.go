package guestlab

import (
	"bytes"
	"context"
	"fmt"

	"vmscope/internal/guestlab/wire"
)

// Agent is the helper's end in a running system: what can be asked of any, whatever machine it runs on. Its methods may be
// called from several goroutines.
type Agent struct {
	name string // for errors
	line *line
}

// WaitReady waits until the system answers. Needed only after a reboot: who starts a guest returns one that does.
func (a *Agent) WaitReady(ctx context.Context) error {
	_, err := a.call(ctx, &wire.Request{Script: []byte(":")})
	return err
}

// ExitError says that a script in the guest ended with a status other than 0.
type ExitError struct {
	Status int // 128+N for death by signal N; 255 may also be the helper's own failure
	Stderr []byte
}

func (e *ExitError) Error() string {
	msg := fmt.Sprintf("guestlab: exit status %d in the guest", e.Status)
	if text := bytes.TrimSpace(e.Stderr); len(text) > 0 {
		msg += ": " + string(text)
	}
	return msg
}

// Run runs a busybox sh script as root in the guest and returns its standard output, exactly. A status other than 0 is an
// *ExitError, beside the output. Processes that the script leaves in the background live on. Several Runs may go on at
// once; if ctx ends first, the script's process group is killed.
func (a *Agent) Run(ctx context.Context, script string) (stdout string, err error) {
	out, err := a.call(ctx, &wire.Request{Script: []byte(script)})
	return string(out), err
}

// Put writes a file in the guest.
func (a *Agent) Put(ctx context.Context, path string, data []byte, perm uint32) error {
	_, err := a.call(ctx, &wire.Request{Put: &wire.Put{Path: path, Mode: perm, Data: data}})
	return err
}

func (a *Agent) call(ctx context.Context, req *wire.Request) ([]byte, error) {
	reply, err := a.line.call(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("guestlab: guest %s: %w", a.name, err)
	}
	if reply.Status != 0 {
		err = &ExitError{reply.Status, reply.Stderr}
	}
	return reply.Stdout, err
}
