package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Virsh is the monitor of a domain of libvirt, which holds the socket itself and passes commands on. The domain is
// marked as tainted by that ("custom monitor control commands issued"), which changes nothing in it.
type Virsh struct {
	program, domain string
}

// NewVirsh gives the monitor of a domain (libvirt's name, which is also QEMU's -name) where the program virsh is there and
// knows it.
func NewVirsh(ctx context.Context, domain string) (*Virsh, error) {
	program, err := exec.LookPath("virsh")
	if err != nil {
		return nil, err
	}
	v := &Virsh{program, domain}
	if domain == "" || strings.HasPrefix(domain, "-") {
		return nil, fmt.Errorf("domain %q: %w", domain, errors.ErrUnsupported)
	}
	_, err = v.Run(ctx, "query-status", nil)
	return v, err
}

// Run executes a command through libvirt.
func (v *Virsh) Run(ctx context.Context, command string, args any) (json.RawMessage, error) {
	return v.run(ctx, command, args, nil)
}

// PassFile passes a descriptor through libvirt, from 8.1 on.
func (v *Virsh) PassFile(ctx context.Context, name string, f *os.File) error {
	_, err := v.run(ctx, "getfd", map[string]string{"fdname": name}, f)
	return err
}

func (v *Virsh) run(ctx context.Context, command string, args any, file *os.File) (json.RawMessage, error) {
	line, err := json.Marshal(request{Execute: command, Arguments: args})
	if err != nil {
		return nil, err
	}
	argv := []string{"--connect", "qemu:///system", "qemu-monitor-command"}
	if os.Geteuid() != 0 {
		argv = argv[2:] // whichever is the user's own
	}
	if file != nil {
		argv = append(argv, "--pass-fds", "3")
	}
	cmd := exec.CommandContext(ctx, v.program, append(argv, v.domain, string(line))...)
	if file != nil {
		cmd.ExtraFiles = []*os.File{file}
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &bounded{b: &out}, &bounded{b: &errs}
	err = cmd.Run()
	var r struct { // without libvirt's id
		Return json.RawMessage `json:"return"`
		Error  *replyError     `json:"error"`
	}
	// virsh ends with a failure where QEMU gave one, and prints the answer all the same.
	if jerr := json.Unmarshal(out.Bytes(), &r); jerr == nil && (r.Return != nil || r.Error != nil) {
		if r.Error != nil {
			return nil, &Error{command, r.Error.Class, r.Error.Desc}
		}
		return r.Return, nil
	}
	if err == nil {
		err = errors.New("the answer is not understood")
	}
	return nil, fmt.Errorf("monitor command %s by virsh: %w: %s", command, err, bytes.TrimSpace(errs.Bytes()[:min(errs.Len(), 500)]))
}

// Close does nothing: nothing is held.
func (v *Virsh) Close() error { return nil }

// bounded takes no more than an answer may have.
type bounded struct{ b *bytes.Buffer }

func (w *bounded) Write(p []byte) (int, error) {
	if w.b.Len()+len(p) > maxLine {
		return 0, fmt.Errorf("more than %d bytes", maxLine)
	}
	return w.b.Write(p)
}
