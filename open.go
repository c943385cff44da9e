package vmscope

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"vmscope/vm"
	"vmscope/vm/dump"
	"vmscope/vm/gdb"
	"vmscope/vm/proc"
	"vmscope/vm/qemu"
	"vmscope/vm/xen"
)

// Open opens the guest that target names:
//
//	qemu:NAME      a running QEMU by its -name
//	qemu:PID       a running QEMU by its process id
//	libvirt:///NAME  a domain of libvirt, by name, UUID or number; QEMU's
//	               monitor is asked through libvirt's daemon
//	firecracker:ID a running Firecracker, cloud-hypervisor, crosvm or kvmtool by
//	               the name it was given, its process id, or its API's socket
//	pid:N          the process that runs a guest, whatever VMM it is
//	xen:NAME       a domain of this Xen host, by name
//	xen:ID         a domain of this Xen host, by number
//	gdb:HOST:PORT  a QEMU by its GDB stub (gdb:PATH: a unix socket), for want of
//	               better: the guest stands still for moments
//	PATH           a running QEMU by its QMP socket, or a dump
//	file:PATH      a dump
//	NAME           the one running VM of that name
//
// Nothing of the guest is read yet; the first View looks for its kernel. The
// caller closes the guest.
func Open(ctx context.Context, target string, opts ...Option) (*Guest, error) {
	o := options{progress: func(uint64, uint64) {}}
	for _, f := range opts {
		f(&o)
	}
	m, err := openMachine(ctx, target, o)
	if err != nil {
		return nil, err
	}
	files, err := o.files(ctx)
	if err != nil {
		m.Close()
		return nil, err
	}
	return &Guest{target: target, machine: m, opt: o, files: files}, nil
}

// ErrTarget says that a target names nothing that can be opened.
var ErrTarget = errors.New("no such target")

func openMachine(ctx context.Context, target string, o options) (vm.Machine, error) {
	scheme, rest, ok := strings.Cut(target, ":")
	switch {
	case target == "":
		return nil, fmt.Errorf("%w: it is empty; 'vmscope vms' lists the running VMs", ErrTarget)
	case ok && scheme == "file":
		return openDump(ctx, rest, o)
	case ok && strings.HasPrefix(rest, "//") && scheme != "libvirt" && daemonLike(scheme):
		return nil, fmt.Errorf("%w: %q is where a daemon of libvirt is, and names no domain: give libvirt:///NAME, on the host that the domain runs on", ErrTarget, target)
	case ok && scheme == "qemu":
		return openQEMU(ctx, rest, o)
	case ok && scheme == "libvirt":
		return openDomain(ctx, rest, o)
	case ok && scheme == "pid":
		return openProcess(ctx, "", rest, o)
	case ok && slices.Contains(proc.Kinds(), scheme):
		return openProcess(ctx, scheme, rest, o)
	case ok && scheme == "xen":
		return openXen(ctx, rest, o)
	case ok && scheme == "gdb":
		return openGDB(ctx, rest, o)
	}
	st, err := os.Stat(target)
	switch {
	case err == nil && st.Mode()&os.ModeSocket != 0:
		return openQEMU(ctx, target, o)
	case err == nil && st.IsDir():
		return nil, fmt.Errorf("%w: %q is a directory", ErrTarget, target)
	case err == nil:
		return openDump(ctx, target, o)
	case strings.Contains(target, "/"):
		return nil, fmt.Errorf("%w: %w", ErrTarget, err)
	case ok && schemeLike(scheme):
		return nil, fmt.Errorf("%w: this vmscope has no driver %q; it has qemu:, libvirt:, %s:, pid:, xen:, gdb: and file:", ErrTarget, scheme, strings.Join(proc.Kinds(), ":, "))
	}
	return openNamed(ctx, target, o)
}

// openNamed opens the one VM of that name, whatever runs it.
func openNamed(ctx context.Context, name string, o options) (vm.Machine, error) {
	// On a Xen host, a QEMU of that name is but the domain's device model.
	if m, err := openXen(ctx, name, o); !errors.Is(err, xen.ErrNoXen) && !errors.Is(err, vm.ErrNoVM) {
		return m, err
	}
	others, err := proc.List()
	if err != nil {
		return nil, err
	}
	others = slices.DeleteFunc(others, func(p proc.Process) bool { return p.Name != name })
	if len(others) == 0 {
		return openQEMU(ctx, name, o)
	}
	q, err := qemu.Find(name)
	switch {
	case errors.Is(err, qemu.ErrNoVM) && len(others) == 1:
		return openProcess(ctx, "", strconv.Itoa(others[0].PID), o)
	case err == nil:
		return nil, fmt.Errorf("%w: %v, %v: give pid:N", vm.ErrManyVMs, q, others[0])
	}
	return nil, fmt.Errorf("%w: %v and others: give pid:N", vm.ErrManyVMs, others[0])
}

// openProcess opens the guest of a process.
func openProcess(ctx context.Context, vmm, target string, o options) (vm.Machine, error) {
	if vmm == "" {
		if _, err := qemu.Find(target); err == nil {
			return openQEMU(ctx, target, o)
		}
	}
	var opts []proc.Option
	switch o.route {
	case "":
	case "mmap":
		opts = append(opts, proc.Mmap())
	case "vmread":
		opts = append(opts, proc.VMRead())
	default:
		return nil, fmt.Errorf("route %q: a VMM without QEMU's monitor is read by mmap or vmread", o.route)
	}
	if o.writable {
		opts = append(opts, proc.Writable())
	}
	return proc.Open(vmm, target, opts...)
}

// daemonLike reports whether s is the scheme of a URI that libvirt's own programs take, such as qemu:///system and
// qemu+ssh://host/system.
func daemonLike(s string) bool {
	driver, _, _ := strings.Cut(s, "+")
	return slices.Contains([]string{"qemu", "xen", "libvirt"}, driver)
}

// schemeLike reports whether s looks like the scheme of a target, not like part
// of a VM's name.
func schemeLike(s string) bool {
	for _, known := range []string{"kvm", "esx", "hyperv"} {
		if s == known {
			return true
		}
	}
	return false
}

func openDump(ctx context.Context, path string, o options) (vm.Machine, error) {
	opts := []dump.Option{dump.During(ctx, o.progress)}
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

// openDomain opens the QEMU of a domain of libvirt.
func openDomain(ctx context.Context, target string, o options) (vm.Machine, error) {
	p, err := qemu.FindDomain(ctx, target)
	if err != nil {
		return nil, err
	}
	return openQEMU(ctx, p.Target(), o)
}

func openXen(ctx context.Context, target string, o options) (vm.Machine, error) {
	var opts []xen.Option
	if o.writable {
		opts = append(opts, xen.Writable())
	}
	return xen.Open(ctx, target, opts...)
}

func openGDB(ctx context.Context, target string, o options) (vm.Machine, error) {
	var opts []gdb.Option
	if o.writable {
		opts = append(opts, gdb.Writable())
	}
	return gdb.Open(ctx, target, opts...)
}
