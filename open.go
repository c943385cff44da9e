package vmscope

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"vmscope/vm"
	"vmscope/vm/dump"
	"vmscope/vm/qemu"
)

// Open opens the guest that target names:
//
//	qemu:NAME      a running QEMU by its -name
//	qemu:PID       a running QEMU by its process id
//	PATH           a running QEMU by its QMP socket, or a dump
//	file:PATH      a dump
//	NAME           the one running VM of that name
//
// Nothing of the guest is read yet; the first View looks for its kernel. The
// caller closes the guest.
func Open(ctx context.Context, target string, opts ...Option) (*Guest, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	m, err := openMachine(ctx, target, o)
	if err != nil {
		return nil, err
	}
	return &Guest{target: target, machine: m, opt: o}, nil
}

// ErrTarget says that a target names nothing that can be opened.
var ErrTarget = errors.New("no such target")

func openMachine(ctx context.Context, target string, o options) (vm.Machine, error) {
	scheme, rest, ok := strings.Cut(target, ":")
	switch {
	case target == "":
		return nil, fmt.Errorf("%w: it is empty; 'vmscope vms' lists the running VMs", ErrTarget)
	case ok && scheme == "file":
		return openDump(rest, o)
	case ok && scheme == "qemu":
		return openQEMU(ctx, rest, o)
	}
	st, err := os.Stat(target)
	switch {
	case err == nil && st.Mode()&os.ModeSocket != 0:
		return openQEMU(ctx, target, o)
	case err == nil && st.IsDir():
		return nil, fmt.Errorf("%w: %q is a directory", ErrTarget, target)
	case err == nil:
		return openDump(target, o)
	case strings.Contains(target, "/"):
		return nil, fmt.Errorf("%w: %w", ErrTarget, err)
	case ok && schemeLike(scheme):
		return nil, fmt.Errorf("%w: this vmscope has no driver %q; it has qemu: and file:", ErrTarget, scheme)
	}
	return openQEMU(ctx, target, o)
}

// schemeLike reports whether s looks like the scheme of a target, not like part
// of a VM's name.
func schemeLike(s string) bool {
	for _, known := range []string{"xen", "libvirt", "gdb", "kvm", "esx", "hyperv"} {
		if s == known {
			return true
		}
	}
	return false
}

func openDump(path string, o options) (vm.Machine, error) {
	var opts []dump.Option
	if o.layout != "" {
		opts = append(opts, dump.Layout(o.layout))
	}
	if o.truncated {
		opts = append(opts, dump.AllowTruncated())
	}
	return dump.Open(path, opts...)
}

func openQEMU(ctx context.Context, target string, o options) (vm.Machine, error) {
	var opts []qemu.Option
	switch r := qemu.Route(o.route); r {
	case "":
	case qemu.Mmap, qemu.VMRead, qemu.QMP:
		opts = append(opts, qemu.Force(r))
	default:
		return nil, fmt.Errorf("unknown route %q: it is mmap, vmread or qmp", o.route)
	}
	if o.writable {
		opts = append(opts, qemu.Writable())
	}
	return qemu.Open(ctx, target, opts...)
}
