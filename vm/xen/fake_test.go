package xen

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/mem"
	"vmscope/vm"
)

// fake is a hypervisor of one machine: it decodes hypercalls byte by byte, as Xen does.
type fake struct {
	mu      sync.Mutex
	version uint32 // of the domctl interface it takes
	denied  bool   // to us: this is no control domain
	buf     []byte
	machine []byte            // memory, by machine frame
	m2p     []uint64          // by machine frame
	own     map[uint64]bool   // frames of Xen that a domain may map
	owner   map[uint64]uint16 // of machine frames
	types   map[uint64]uint32 // of machine frames
	domains map[uint16]*fakeDomain
	maps    int // mappings that are open
	batches int // mappings that were made
	asked   int // frames whose types were asked for
	pod     uint64
}

type fakeDomain struct {
	flags      uint32
	emulates   uint32
	pages, max uint64
	shared     uint64
	vcpus      uint32
	frames     map[uint64]uint64 // gfn to machine frame, of an HVM domain
	highest    uint64
	paged      map[uint64]bool
	grants     map[uint64]bool   // gfns at which an HVM domain has others' pages
	contexts   map[uint32][]byte // of vCPUs, as the kind of domain has them
	pauses     int
}

const fakeM2PFrame = 1 << 30 // where the fake says that its m2p lies

func newFake(version uint32, frames int) *fake {
	return &fake{
		version: version, buf: make([]byte, areaSize), machine: make([]byte, frames*mem.PageSize), m2p: make([]uint64, frames),
		own: map[uint64]bool{}, owner: map[uint64]uint16{}, types: map[uint64]uint32{}, domains: map[uint16]*fakeDomain{0: {pages: 1}},
	}
}

func (f *fake) area() []byte { return f.buf }

func (f *fake) Close() error {
	if f.maps != 0 {
		return fmt.Errorf("%d mappings left", f.maps)
	}
	return nil
}

// at is the part of the area that an address leads to.
func (f *fake) at(addr uint64) []byte {
	return f.buf[addr-uint64(uintptr(unsafe.Pointer(&f.buf[0]))):]
}

func (f *fake) hypercall(op uint64, args ...uint64) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch op {
	case callSysctl:
		return 0, f.sysctl(f.at(args[0]))
	case callDomctl:
		return 0, f.domctl(f.at(args[0]))
	case callMemoryOp:
		return f.memoryOp(args[0], args[1])
	case callHVMOp:
		return 0, f.hvmOp(args[0], f.at(args[1]))
	}
	return 0, unix.ENOSYS
}

func (f *fake) domctl(b []byte) error {
	if f.denied {
		return unix.EPERM
	}
	if le.Uint32(b[4:]) != f.version {
		return unix.EACCES
	}
	id, u := le.Uint16(b[8:]), b[16:144]
	d := f.domains[id]
	if d == nil && le.Uint32(b) != domctlInfo {
		return unix.ESRCH
	}
	switch le.Uint32(b) {
	case domctlInfo:
		if f.version < exactInfo {
			id, d = f.from(id)
		}
		if d == nil {
			return unix.ESRCH
		}
		f.tell(u, id, d)
	case domctlAddressSize:
		le.PutUint32(u, 64)
	case domctlPause:
		d.pauses++
	case domctlUnpause:
		if d.pauses == 0 {
			return unix.EINVAL
		}
		d.pauses--
	case domctlPageInfo:
		list := f.at(le.Uint64(u[8:]))
		f.asked += int(le.Uint64(u))
		for i := range le.Uint64(u) {
			frame, t := le.Uint64(list[i*8:]), uint32(0xf<<28)
			if m, ok := f.frame(id, frame); ok && !f.own[m] {
				t = f.types[m]
			}
			le.PutUint64(list[i*8:], uint64(t))
		}
	case domctlVCPUContext, domctlHVMContextPart:
		v, to := le.Uint32(u), u[8:]
		if le.Uint32(b) == domctlHVMContextPart {
			if v != hvmCPU {
				return unix.EINVAL
			}
			v, to = le.Uint32(u[4:]), u[16:]
		}
		c := d.contexts[v]
		if c == nil {
			return unix.ENODATA
		}
		copy(f.at(le.Uint64(to)), c)
	default:
		return unix.ENOSYS
	}
	return nil
}

// exactInfo is a version since which domctlInfo may tell of no other domain than was asked for: that of Xen 4.20, which does not.
const exactInfo = 0x17

// from is the first domain of at least that number.
func (f *fake) from(id uint16) (uint16, *fakeDomain) {
	for ; id < firstReserved; id++ {
		if d := f.domains[id]; d != nil {
			return id, d
		}
	}
	return 0, nil
}

// tell writes struct xen_domctl_getdomaininfo.
func (f *fake) tell(u []byte, id uint16, d *fakeDomain) {
	config := 104
	if f.version < domctlGPABits {
		config = 96
	}
	le.PutUint16(u, id)
	le.PutUint32(u[4:], d.flags)
	le.PutUint64(u[8:], d.pages)
	le.PutUint64(u[16:], d.max)
	le.PutUint64(u[48:], d.shared)
	le.PutUint32(u[64:], d.vcpus)
	le.PutUint32(u[68:], d.vcpus-1)
	le.PutUint32(u[config:], d.emulates)
	u[76] = byte(id) // of the UUID
}

func (f *fake) sysctl(b []byte) error {
	if le.Uint32(b[4:]) != f.version+1 { // it has a count of its own
		return unix.EACCES
	}
	u := b[8:136]
	if le.Uint32(b) != sysctlDomains || le.Uint32(u[4:]) != 1 {
		return unix.EINVAL
	}
	if id, d := f.from(le.Uint16(u)); d != nil {
		f.tell(f.at(le.Uint64(u[8:])), id, d)
		le.PutUint32(u[16:], 1)
	}
	return nil
}

func (f *fake) hvmOp(op uint64, b []byte) error {
	d := f.domains[le.Uint16(b)]
	if op != hvmMemType || d == nil || d.frames == nil {
		return unix.EINVAL
	}
	page := le.Uint64(b[8:])
	_, own := d.frames[page]
	le.PutUint16(b[2:], hvmDevice)
	if own || d.grants[page] {
		le.PutUint16(b[2:], 0)
	}
	return nil
}

func (f *fake) memoryOp(op, at uint64) (uint64, error) {
	if op == memoryMaximumRAMPage {
		return uint64(len(f.m2p)) - 1, nil
	}
	b := f.at(at)
	switch op {
	case memoryMaximumGFN:
		return f.domains[le.Uint16(b)].highest, nil
	case memoryPoDTarget:
		le.PutUint64(b[24:], f.pod)
		return 0, nil
	case memoryM2PList:
		le.PutUint64(f.at(le.Uint64(b[8:])), fakeM2PFrame)
		le.PutUint32(b[16:], 1)
		return 0, nil
	}
	return 0, unix.ENOSYS
}

// frame is the machine frame that a domain's frame is.
func (f *fake) frame(domain uint16, frame uint64) (uint64, bool) {
	if d := f.domains[domain]; d.frames != nil {
		m, ok := d.frames[frame]
		return m, ok
	}
	return frame, f.owner[frame] == domain || f.own[frame]
}

func (f *fake) mapFrames(domain uint16, frames []uint64, write bool) (*mapping, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.maps++
	f.batches++
	m := &mapping{data: make([]byte, len(frames)*mem.PageSize), errs: make([]unix.Errno, len(frames))}
	from := make([][]byte, len(frames))
	for i, frame := range frames {
		page := m.data[i*mem.PageSize : (i+1)*mem.PageSize]
		if domain == domainXen {
			for k := range mem.PageSize / 8 {
				if at := (frame-fakeM2PFrame)*mem.PageSize/8 + uint64(k); at < uint64(len(f.m2p)) {
					le.PutUint64(page[k*8:], f.m2p[at])
				}
			}
			continue
		}
		mfn, ok := f.frame(domain, frame)
		switch {
		case f.domains[domain].paged[frame]:
			m.errs[i] = unix.ENOENT
		case !ok || (mfn+1)*mem.PageSize > uint64(len(f.machine)):
			m.errs[i] = unix.EINVAL
		case write && f.types[mfn]&typeMask != 0:
			m.errs[i] = unix.EBUSY
		default:
			from[i] = f.machine[mfn*mem.PageSize : (mfn+1)*mem.PageSize]
			copy(page, from[i])
		}
	}
	m.unmap = func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.maps--
		for i := range from {
			if write && from[i] != nil {
				copy(from[i], m.data[i*mem.PageSize:])
			}
		}
		clear(m.data)
		return nil
	}
	return m, nil
}

// attachTo opens a domain of the fake.
func attachTo(t *testing.T, f *fake, id uint16, o options) (*machine, error) {
	t.Helper()
	x, err := openHost(f)
	if err != nil {
		return nil, err
	}
	list, err := x.domains()
	if err != nil {
		return nil, err
	}
	d, err := x.find(fmt.Sprint(id), list)
	if err != nil {
		return nil, err
	}
	m, err := x.attach(d, o)
	if err != nil {
		return nil, err
	}
	if w, ok := m.(*writableMachine); ok {
		return w.machine, nil
	}
	return m.(*machine), nil
}

func TestVersions(t *testing.T) {
	for _, v := range []uint32{0x10, 0x12, 0x13, 0x14, 0x15, 0x17, 0x18, 0x22} {
		f := newFake(v, 1)
		f.domains[3] = &fakeDomain{flags: flagHVM, emulates: emulatesLAPIC, pages: 7, vcpus: 2}
		f.domains[9] = &fakeDomain{flags: flagHVM | flagPaused, emulates: 0x1ff, vcpus: 1}
		f.domains[10] = &fakeDomain{vcpus: 1}
		f.domains[11] = &fakeDomain{flags: flagDying, vcpus: 1}
		x, err := openHost(f)
		if err != nil || x.domctl != v {
			t.Fatalf("interface %#x: %v, found %#x", v, err, x.domctl)
		}
		list, err := x.domains()
		if err != nil || len(list) != 3 {
			t.Fatalf("interface %#x: %+v, %v", v, list, err)
		}
		a, b, c := list[0], list[1], list[2]
		if a.ID != 3 || a.Kind != PVH || a.RAM != 7*mem.PageSize || a.VCPUs != 2 || a.UUID[0] != 3 || b.ID != 9 || b.Kind != HVM || !b.Paused || c.ID != 10 || c.Kind != PV {
			t.Errorf("interface %#x: %+v", v, list)
		}
		for target, want := range map[string]error{"0": ErrPrivileged, "Domain-0": ErrPrivileged, "4": vm.ErrNoVM, "web": vm.ErrNoVM, "": vm.ErrNoVM} {
			if _, err := x.find(target, list); !errors.Is(err, want) {
				t.Errorf("find %q: %v, want %v", target, err, want)
			}
		}
	}
	if _, err := openHost(newFake(0x0f, 1)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("an older Xen: %v", err)
	}
	f := newFake(0x15, 1)
	f.denied = true
	if _, err := openHost(f); !errors.Is(err, ErrPermission) {
		t.Errorf("a domain without rights: %v", err)
	}
}
