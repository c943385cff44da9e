package vmscope

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"vmscope/block"
	"vmscope/block/part"
	"vmscope/vm/proc"
	"vmscope/vm/qemu"
)

// Disk is a disk that can be read: one of a running machine's, a raw image, a
// block device, or an NBD export. Its size and content are those that the guest
// sees. It is only ever read.
type Disk struct {
	block.Device
	// Name is what a Linux guest would call it: "vda". It is a guess by the order of the machine's disks; "disk0" of an image.
	Name     string
	ID       string // of the device in the machine, "" if nobody gave it one
	Format   string // "raw", "qcow2", …; "nbd" of an export
	File     string // where the content comes from
	ReadOnly bool   // for the guest

	machine string // the target whose disk it is, if that runs; else ""
	close   func() error
	once    sync.Once
}

// Close gives the disk back; the machine is left as it was found. It may be
// called at any time, and more than once: it returns when that is done. Reads
// that are under way may fail.
func (d *Disk) Close() error {
	var err error
	d.once.Do(func() { err = d.close() })
	return err
}

// ErrNoDisk says that a target has no such disk.
var ErrNoDisk = errors.New("no such disk")

// OpenDisks opens all disks that target has:
//
//	qemu:NAME, qemu:PID, NAME, PID, or the path of a QMP socket    the disks of a running machine
//	libvirt:///NAME                                                those of a domain of libvirt
//	file:PATH, or PATH                                             a raw image, or a block device
//	nbd+unix:///EXPORT?socket=PATH, nbd://HOST/EXPORT              an NBD export
//
// An image is raw, whatever it looks like: its content belongs to a guest, which
// could make it look like any format. Close each disk.
//
// Of the options, Paused counts: a running machine's vCPUs stand still until all
// disks are closed, so that all that is read is of one moment.
func OpenDisks(ctx context.Context, target string, opts ...Option) ([]*Disk, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	scheme, rest, ok := strings.Cut(target, ":")
	switch {
	case target == "":
		return nil, fmt.Errorf("%w: it is empty; 'vmscope vms' lists the running VMs", ErrTarget)
	case ok && scheme == "file":
		return openImage(rest, o)
	case ok && o.paused && strings.HasPrefix(scheme, "nbd"):
		return nil, fmt.Errorf("pause %s: %w: an export does not run", target, errors.ErrUnsupported)
	case ok && (scheme == "nbd" || scheme == "nbds" || strings.HasPrefix(scheme, "nbd+") || strings.HasPrefix(scheme, "nbds+")):
		return openNBD(ctx, target)
	case ok && scheme == "qemu":
		return openMachineDisks(ctx, rest, o)
	case ok && scheme == "libvirt":
		p, err := qemu.FindDomain(ctx, rest)
		if err != nil {
			return nil, err
		}
		return openMachineDisks(ctx, p.Target(), o)
	}
	if err := diskless(target); err != nil {
		return nil, err
	}
	st, err := os.Stat(target)
	switch {
	case err == nil && st.Mode()&os.ModeSocket != 0:
		return openMachineDisks(ctx, target, o)
	case err == nil && st.IsDir():
		return nil, fmt.Errorf("%w: %q is a directory", ErrTarget, target)
	case err == nil:
		return openImage(target, o)
	case strings.Contains(target, "/"):
		return nil, fmt.Errorf("%w: %w", ErrTarget, err)
	case ok && schemeLike(scheme):
		return nil, fmt.Errorf("%w: this vmscope has no driver %q; it has qemu:, libvirt:, file: and nbd:", ErrTarget, scheme)
	}
	all, err := openMachineDisks(ctx, target, o)
	if errors.Is(err, qemu.ErrNoVM) {
		err = fmt.Errorf("no file %q here, and %w", target, err)
	}
	return all, err
}

// diskless says what to do where a target names a machine of which only the memory is found; nil if it does not.
func diskless(target string) error {
	scheme, _, _ := strings.Cut(target, ":")
	switch {
	case scheme == target:
	case scheme == "xen":
		return fmt.Errorf("disks of %s: %w: name their images or block devices; to watch one, serve it: 'vmscope xen-block --help'", target, errors.ErrUnsupported)
	case scheme == "gdb", scheme == "pid", slices.Contains(proc.Kinds(), scheme):
		return fmt.Errorf("disks of %s: %w: name their images, block devices or NBD exports; to watch one, serve it: 'vmscope nbd --help'", target, errors.ErrUnsupported)
	}
	return nil
}

// OpenDisk opens one disk of target: by its name, by its id, or, if name is "",
// the only one.
func OpenDisk(ctx context.Context, target, name string, opts ...Option) (*Disk, error) {
	all, err := OpenDisks(ctx, target, opts...)
	if err != nil {
		return nil, err
	}
	d, err := chooseDisk(all, name)
	for _, x := range all {
		if x != d {
			err = errors.Join(err, x.Close())
		}
	}
	return d, err
}

func chooseDisk(all []*Disk, name string) (*Disk, error) {
	if name == "" && len(all) == 1 {
		return all[0], nil
	}
	var names []string
	for _, d := range all {
		if name != "" && (name == d.Name || name == d.ID || name == "/dev/"+d.Name) {
			return d, nil
		}
		n := d.Name
		if d.ID != "" && d.ID != n {
			n = fmt.Sprintf("%s (%q)", n, d.ID)
		}
		names = append(names, n)
	}
	switch {
	case len(all) == 0:
		return nil, fmt.Errorf("%w: there is none", ErrNoDisk)
	case name == "":
		return nil, fmt.Errorf("%w: which of several? %s", ErrNoDisk, strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("%w: %q; there is %s", ErrNoDisk, name, strings.Join(names, ", "))
}

// CloseDisks closes all of them.
func CloseDisks(all []*Disk) error {
	var err error
	for _, d := range all {
		err = errors.Join(err, d.Close())
	}
	return err
}

// ScanDisks finds out what is on the disks of one machine, all together, since a
// volume may lie on several. The layout reads from the disks, so they are to be
// closed last.
func ScanDisks(ctx context.Context, all []*Disk) (*part.Layout, error) {
	list := make([]part.Disk, len(all))
	for i, d := range all {
		list[i] = part.Disk{Name: d.Name, Dev: d}
	}
	return part.Scan(ctx, list...)
}

func openImage(path string, o options) ([]*Disk, error) {
	if o.paused {
		return nil, fmt.Errorf("pause %s: %w: an image does not run", path, errors.ErrUnsupported)
	}
	f, err := block.OpenFile(path)
	if err != nil {
		return nil, err
	}
	return []*Disk{{Device: f, Name: "disk0", Format: "raw", File: path, close: f.Close}}, nil
}
