package xenblk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/internal/xenbus"
)

// ioctls of gntdev and evtchn (include/uapi/xen/gntdev.h, evtchn.h): _IOC(_IOC_NONE, type, number, size).
const (
	gntMap        = 0x184700
	gntUnmap      = 0x104701
	gntCopy       = 0x104708
	evtBind       = 0x84501
	evtNotify     = 0x44504
	copyFromGuest = 1 // the source is a grant
	copyToGuest   = 2
)

// Open opens the devices of this host.
func Open() (*Host, error) {
	store, err := xenbus.Open()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile("/dev/xen/gntdev", os.O_RDWR, 0)
	if err == nil {
		err = unix.Access("/dev/xen/evtchn", unix.R_OK|unix.W_OK)
		if err != nil {
			f.Close()
			err = &os.PathError{Op: "open", Path: "/dev/xen/evtchn", Err: err}
		}
	}
	if err != nil {
		store.Close()
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: load the modules xen-gntdev and xen-evtchn", err)
		}
		return nil, err
	}
	return &Host{Store: store, Grants: &gntdev{f: f, maps: map[*byte]mapping{}}, Events: evtchn{}, Claim: claim}, nil
}

// Close gives back what Open opened.
func (h *Host) Close() error {
	err := h.Store.Close()
	if g, ok := h.Grants.(*gntdev); ok {
		err = errors.Join(err, g.f.Close())
	}
	return err
}

func ioctl(fd uintptr, nr uintptr, arg unsafe.Pointer) (int, error) {
	for {
		n, _, no := unix.Syscall(unix.SYS_IOCTL, fd, nr, uintptr(arg))
		switch no {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, no
		}
	}
}

// gntdev is Grants by the kernel's device.
type gntdev struct {
	f *os.File

	mu   sync.Mutex
	maps map[*byte]mapping
}

type mapping struct {
	index uint64
	count uint32
}

func (g *gntdev) Map(domain uint16, refs []uint32) ([]byte, error) {
	type grant struct{ domain, ref uint32 }
	// struct ioctl_gntdev_map_grant_ref with as many grants as a ring may have.
	var arg struct {
		count, _ uint32
		index    uint64
		refs     [maxRingPages]grant
	}
	if len(refs) == 0 || len(refs) > len(arg.refs) {
		return nil, unix.EINVAL
	}
	arg.count = uint32(len(refs))
	for i, r := range refs {
		arg.refs[i] = grant{uint32(domain), r}
	}
	if _, err := ioctl(g.f.Fd(), gntMap, unsafe.Pointer(&arg)); err != nil {
		return nil, os.NewSyscallError("map grants", err)
	}
	m := mapping{arg.index, arg.count}
	mem, err := unix.Mmap(int(g.f.Fd()), int64(m.index), len(refs)*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		g.drop(m)
		return nil, os.NewSyscallError("map grants", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.maps[&mem[0]] = m
	return mem, nil
}

func (g *gntdev) drop(m mapping) error {
	arg := struct {
		index    uint64
		count, _ uint32
	}{m.index, m.count, 0}
	_, err := ioctl(g.f.Fd(), gntUnmap, unsafe.Pointer(&arg))
	return os.NewSyscallError("unmap grants", err)
}

func (g *gntdev) Unmap(mem []byte) error {
	g.mu.Lock()
	m, ok := g.maps[&mem[0]]
	delete(g.maps, &mem[0])
	g.mu.Unlock()
	if !ok {
		return unix.EINVAL
	}
	return errors.Join(os.NewSyscallError("munmap", unix.Munmap(mem)), g.drop(m))
}

// copySegment is struct gntdev_grant_copy_segment.
type copySegment struct {
	source, dest uint64 // an address, or a grant: ref, offset << 32, domain << 48
	len, flags   uint16
	status       int16
	_            uint16
}

var copyPool = sync.Pool{New: func() any { return new([maxIndirect]copySegment) }}

func (g *gntdev) Copy(domain uint16, list []Copy) error {
	if len(list) == 0 {
		return nil
	}
	segs := copyPool.Get().(*[maxIndirect]copySegment)
	defer copyPool.Put(segs)
	if len(list) > len(segs) {
		return unix.EINVAL
	}
	for i, c := range list {
		if c.Off < 0 || len(c.Mem) == 0 || c.Off+len(c.Mem) > pageSize {
			return unix.EINVAL
		}
		grant := uint64(c.Ref) | uint64(c.Off)<<32 | uint64(domain)<<48
		ours := uint64(uintptr(unsafe.Pointer(&c.Mem[0])))
		segs[i] = copySegment{source: grant, dest: ours, len: uint16(len(c.Mem)), flags: copyFromGuest}
		if c.ToGuest {
			segs[i].source, segs[i].dest, segs[i].flags = ours, grant, copyToGuest
		}
	}
	arg := struct {
		count, _ uint32
		segs     *copySegment
	}{count: uint32(len(list)), segs: &segs[0]}
	_, err := ioctl(g.f.Fd(), gntCopy, unsafe.Pointer(&arg))
	runtime.KeepAlive(list)
	if err != nil {
		return os.NewSyscallError("copy grants", err)
	}
	for i := range list {
		if s := segs[i].status; s != 0 {
			return fmt.Errorf("copy grant %d of domain %d: status %d", list[i].Ref, domain, s)
		}
	}
	return nil
}

// evtchn is Events by the kernel's device: one file for each port.
type evtchn struct{}

type port struct {
	f     *os.File
	local uint32
}

func (evtchn) Bind(domain uint16, remote uint32) (Port, error) {
	fd, err := unix.Open("/dev/xen/evtchn", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/xen/evtchn", Err: err}
	}
	arg := [2]uint32{uint32(domain), remote}
	n, err := ioctl(uintptr(fd), evtBind, unsafe.Pointer(&arg))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind to port %d of domain %d: %w", remote, domain, err)
	}
	return &port{os.NewFile(uintptr(fd), "/dev/xen/evtchn"), uint32(n)}, nil
}

func (p *port) Wait() error {
	// Ports that called; writing them back lets them call again.
	var b [4]byte
	if _, err := p.f.Read(b[:]); err != nil {
		return err
	}
	_, err := p.f.Write(b[:])
	return err
}

func (p *port) Notify() error {
	raw, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	arg := p.local
	cerr := raw.Control(func(fd uintptr) { _, err = ioctl(fd, evtNotify, unsafe.Pointer(&arg)) })
	return errors.Join(cerr, err)
}

func (p *port) Close() error { return p.f.Close() }

// claim unbinds Linux's xen-blkback from a vbd. It is meant for that (commit "xen-blkback: support dynamic unbind/bind" of
// Linux 5.6): the guest need not know.
func claim(v Vbd) error {
	name := fmt.Sprintf("vbd-%d-%d", v.Domain, v.Device)
	err := os.WriteFile("/sys/bus/xen-backend/devices/"+name+"/driver/unbind", []byte(name), 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil // nobody has it
	}
	if err != nil {
		return fmt.Errorf("take it from the kernel's xen-blkback: %w", err)
	}
	return nil
}
