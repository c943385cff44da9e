package qmp

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
)

// Relay is the monitor of a QEMU whose socket another program holds, which passes lines on: libvirt's daemon.
type Relay struct {
	// Pass has QEMU execute a line, with a file passed along if that is not nil, and gives the line that it answered.
	Pass func(ctx context.Context, line string, file *os.File) (string, error)
	// Leave lets go of the other program.
	Leave func() error
}

// Run executes a command.
func (r *Relay) Run(ctx context.Context, command string, args any) (json.RawMessage, error) {
	return r.run(ctx, command, args, nil)
}

// PassFile sends a descriptor along with getfd.
func (r *Relay) PassFile(ctx context.Context, name string, f *os.File) error {
	_, err := r.run(ctx, "getfd", map[string]string{"fdname": name}, f)
	return err
}

func (r *Relay) run(ctx context.Context, command string, args any, file *os.File) (json.RawMessage, error) {
	line, err := json.Marshal(request{Execute: command, Arguments: args})
	if err != nil {
		return nil, err
	}
	text, err := r.Pass(ctx, string(line), file)
	if err != nil {
		return nil, fmt.Errorf("monitor command %s: %w", command, err)
	}
	var a struct { // its id is the other program's
		Return json.RawMessage `json:"return"`
		Error  *replyError     `json:"error"`
	}
	switch err := json.Unmarshal([]byte(text), &a); {
	case err != nil:
		return nil, fmt.Errorf("monitor command %s: the answer is not understood: %w", command, err)
	case a.Error != nil:
		return nil, &Error{command, a.Error.Class, a.Error.Desc}
	case a.Return == nil:
		return nil, fmt.Errorf("monitor command %s: the answer is not understood: it returns nothing", command)
	}
	return a.Return, nil
}

// Close lets go.
func (r *Relay) Close() error { return r.Leave() }
