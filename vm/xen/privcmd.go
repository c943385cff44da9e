package xen

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// hypervisor is what is asked of Xen; the kernel's device gives it, and tests do.
type hypervisor interface {
	// hypercall makes one; addresses among its arguments point into the area.
	hypercall(op uint64, args ...uint64) (uint64, error)
	// area is memory that the hypervisor reads and writes, of areaSize bytes. Whoever uses it holds the host's lock.
	area() []byte
	// mapFrames maps frames of a domain into this process, one behind another. Frames that cannot be mapped have an errno,
	// and must not be touched.
	mapFrames(domain uint16, frames []uint64, write bool) (*mapping, error)
	Close() error
}

// mapping is frames of a domain in this process.
type mapping struct {
	data  []byte // a page each
	errs  []unix.Errno
	unmap func() error
}

// areaSize bounds what a hypercall takes and gives beside its registers.
const areaSize = 256 << 10

// The ioctls of /dev/xen/privcmd, _IOC(_IOC_NONE, 'P', number, size).
const (
	ioctlHypercall   = 0x305000
	ioctlMmapBatchV2 = 0x205004
)

// device is the hypervisor behind the kernel's device.
type device struct {
	privcmd, calls *os.File
	pinned         []byte
}

// openDevice opens the way to the hypervisor.
func openDevice() (*device, error) {
	d := &device{}
	var err error
	if d.privcmd, err = os.OpenFile("/dev/xen/privcmd", os.O_RDWR, 0); err != nil {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%w (no /dev/xen/privcmd: is xen_privcmd loaded?)", ErrNoXen)
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("%w: run as root: %w", ErrPermission, err)
		}
		return nil, err
	}
	// Memory that stays where it is; since Linux 4.18 the kernel has a device for that.
	if d.calls, err = os.OpenFile("/dev/xen/hypercall", os.O_RDWR, 0); err == nil {
		d.pinned, err = unix.Mmap(int(d.calls.Fd()), 0, areaSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	} else if errors.Is(err, fs.ErrNotExist) {
		d.pinned, err = unix.Mmap(-1, 0, areaSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_LOCKED|unix.MAP_POPULATE)
		if err == nil {
			err = unix.Madvise(d.pinned, unix.MADV_DONTFORK) // a copy of it on write would move it
		}
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("memory for hypercalls: %w", err)
	}
	return d, nil
}

func (d *device) area() []byte { return d.pinned }

func (d *device) hypercall(op uint64, args ...uint64) (uint64, error) {
	var call struct {
		op  uint64
		arg [5]uint64
	}
	call.op = op
	copy(call.arg[:], args)
	return d.ioctl(ioctlHypercall, unsafe.Pointer(&call))
}

func (d *device) ioctl(nr uintptr, arg unsafe.Pointer) (uint64, error) {
	for {
		r, _, errno := syscall.Syscall(syscall.SYS_IOCTL, d.privcmd.Fd(), nr, uintptr(arg))
		switch errno {
		case 0:
			return uint64(r), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// mapFrames maps read-only unless write, so that Xen gives page tables of PV guests, too.
func (d *device) mapFrames(domain uint16, frames []uint64, write bool) (*mapping, error) {
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	data, err := unix.Mmap(int(d.privcmd.Fd()), 0, len(frames)*mem.PageSize, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	errs := make([]int32, len(frames))
	batch := struct { // struct privcmd_mmapbatch_v2
		num    uint32
		domain uint16
		addr   unsafe.Pointer
		frames unsafe.Pointer
		errs   unsafe.Pointer
	}{uint32(len(frames)), domain, unsafe.Pointer(&data[0]), unsafe.Pointer(&frames[0]), unsafe.Pointer(&errs[0])}
	// ENOENT: some frames are paged out; the array tells which.
	if _, err := d.ioctl(ioctlMmapBatchV2, unsafe.Pointer(&batch)); err != nil && err != unix.ENOENT {
		unix.Munmap(data)
		return nil, err
	}
	m := &mapping{data: data, errs: make([]unix.Errno, len(frames)), unmap: func() error { return unix.Munmap(data) }}
	for i, e := range errs {
		m.errs[i] = unix.Errno(-e)
	}
	return m, nil
}

func (d *device) Close() error {
	if d.pinned != nil {
		unix.Munmap(d.pinned)
	}
	if d.calls != nil {
		d.calls.Close()
	}
	return d.privcmd.Close()
}
