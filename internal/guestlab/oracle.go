package guestlab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"vmscope/internal/guestlab/wire"
)

// The facts that a guest tells about itself, and what it can be asked to start; see package wire for the fields.
type (
	Process   = wire.Process
	Thread    = wire.Thread
	Module    = wire.Module
	Mount     = wire.Mount
	Socket    = wire.Socket
	Owner     = wire.Owner
	FD        = wire.FD
	Mapping   = wire.Mapping
	LogRecord = wire.LogRecord
	System    = wire.System
	Spawn     = wire.Spawn
	Hold      = wire.Hold
)

// Symbol is a line of /proc/kallsyms.
type Symbol struct {
	Addr   uint64
	Type   byte
	Name   string
	Module string // "" for the kernel itself; "bpf" and the like are not modules
}

// All questions are answered within the agent, which lives as long as the guest: asking adds no process to the answer.
// A pid of 0 asks about all processes.

// Processes tells the entries of /proc, by pid.
func (a *Agent) Processes(ctx context.Context) ([]Process, error) {
	return ask[Process](ctx, a, "ps", 0)
}

// Threads tells the threads of processes, that of the process itself included.
func (a *Agent) Threads(ctx context.Context, pid int) ([]Thread, error) {
	return ask[Thread](ctx, a, "threads", pid)
}

// Modules tells /proc/modules, newest first as the kernel lists them.
func (a *Agent) Modules(ctx context.Context) ([]Module, error) {
	return ask[Module](ctx, a, "lsmod", 0)
}

// Mounts tells the mounts of a process's namespace; with pid 0, the agent's.
func (a *Agent) Mounts(ctx context.Context, pid int) ([]Mount, error) {
	return ask[Mount](ctx, a, "mounts", pid)
}

// Sockets tells the sockets of all network namespaces that a process is in.
func (a *Agent) Sockets(ctx context.Context) ([]Socket, error) {
	return ask[Socket](ctx, a, "sockets", 0)
}

// FDs tells the open descriptors of processes.
func (a *Agent) FDs(ctx context.Context, pid int) ([]FD, error) { return ask[FD](ctx, a, "fds", pid) }

// Mappings tells the memory mappings of processes.
func (a *Agent) Mappings(ctx context.Context, pid int) ([]Mapping, error) {
	return ask[Mapping](ctx, a, "maps", pid)
}

// Dmesg tells the kernel's log, oldest record first.
func (a *Agent) Dmesg(ctx context.Context) ([]LogRecord, error) {
	return ask[LogRecord](ctx, a, "dmesg", 0)
}

// System tells uname, the command line and the clocks.
func (a *Agent) System(ctx context.Context) (System, error) {
	list, err := ask[System](ctx, a, "system", 0)
	if err != nil {
		return System{}, err
	}
	return list[0], nil
}

// Environ tells a process's environment, entry by entry.
func (a *Agent) Environ(ctx context.Context, pid int) ([][]byte, error) {
	raw, err := a.Ask(ctx, "environ", strconv.Itoa(pid))
	raw = bytes.TrimSuffix(raw, []byte{0})
	if err != nil || len(raw) == 0 {
		return nil, err
	}
	return bytes.Split(raw, []byte{0}), nil
}

// Kallsyms tells all symbols of the kernel and its modules, in the kernel's order.
func (a *Agent) Kallsyms(ctx context.Context) ([]Symbol, error) {
	raw, err := a.Ask(ctx, "kallsyms")
	if err != nil {
		return nil, err
	}
	return parseKallsyms(string(raw))
}

func parseKallsyms(text string) ([]Symbol, error) {
	syms := make([]Symbol, 0, strings.Count(text, "\n"))
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 || len(f[1]) != 1 {
			return nil, fmt.Errorf("guestlab: kallsyms line %q", line)
		}
		addr, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("guestlab: kallsyms line %q: %w", line, err)
		}
		s := Symbol{Addr: addr, Type: f[1][0], Name: f[2]}
		if len(f) > 3 {
			s.Module = strings.Trim(f[3], "[]")
		}
		syms = append(syms, s)
	}
	return syms, nil
}

// Ask puts a question of "rat oracle" and returns the bare answer: JSON lines, or the bytes of a file (kallsyms,
// iomem, environ PID, cmdline PID, auxv PID).
func (a *Agent) Ask(ctx context.Context, question ...string) ([]byte, error) {
	return a.call(ctx, &wire.Request{Oracle: question})
}

func ask[T any](ctx context.Context, a *Agent, question string, pid int) ([]T, error) {
	raw, err := a.Ask(ctx, question, strconv.Itoa(pid))
	if err != nil {
		return nil, err
	}
	var list []T
	for dec := json.NewDecoder(bytes.NewReader(raw)); ; {
		var fact T
		err := dec.Decode(&fact)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, fmt.Errorf("guestlab: answer to %s: %w", question, err)
		}
		list = append(list, fact)
	}
}

// Spawn starts a process in the guest and returns its pid there, once all that it shall hold exists. It lives until it
// is killed (g.Run(ctx, "kill …")) or the guest ends.
func (a *Agent) Spawn(ctx context.Context, s Spawn) (pid int, err error) {
	out, err := a.call(ctx, &wire.Request{Spawn: &s})
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(out))
}
