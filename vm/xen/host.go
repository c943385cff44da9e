package xen

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers of hypercalls, xen.h.
const (
	callMemoryOp = 12
	callHVMOp    = 34
	callSysctl   = 35
	callDomctl   = 36
)

// Operations on domains, domctl.h.
const (
	domctlPause          = 3
	domctlUnpause        = 4
	domctlInfo           = 5
	domctlVCPUContext    = 13
	domctlAddressSize    = 36
	domctlHVMContextPart = 55
	domctlPageInfo       = 61
)

// An operation on the host, sysctl.h.
const sysctlDomains = 6

// Operations on memory, memory.h.
const (
	memoryMaximumRAMPage = 2
	memoryM2PList        = 5
	memoryMaximumGFN     = 14
	memoryPoDTarget      = 17
)

// An operation on HVM and PVH domains, hvm/hvm_op.h, and the type that it tells of a page that is no memory.
const (
	hvmMemType = 15
	hvmDevice  = 2 // HVMMEM_mmio_dm; a hole, too
)

// The interfaces of domctl and sysctl have a version each, which must match exactly. They grow; from the newest imaginable
// downwards they are tried until Xen takes one. Xen 4.11 has 0x10 and 0x11.
const (
	newestInterface = 0x40
	oldestInterface = 0x10
	// domctlGPABits is the version since which struct xen_domctl_getdomaininfo has gpaddr_bits in front of the architecture's
	// configuration (Xen 4.16, commit "xen: Introduce "gpaddr_bits" field to XEN_DOMCTL_getdomaininfo").
	domctlGPABits = 0x14
)

// host is a Xen host seen from its dom0. Its methods are safe for concurrent use.
type host struct {
	hypervisor
	mu             sync.Mutex // guards the area
	domctl, sysctl uint32     // versions of the interfaces
}

// extraAt is where the area has what an operation's structure points to.
const extraAt = 4096

// openHost finds out which versions of the interfaces Xen has.
func openHost(h hypervisor) (*host, error) {
	x := &host{hypervisor: h}
	err := findVersion("domctl", &x.domctl, func() error {
		_, err := x.control(domctlInfo, 0, nil, nil)
		return err
	})
	if err == nil {
		err = findVersion("sysctl", &x.sysctl, func() error {
			_, err := x.next(0)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	return x, nil
}

// findVersion sets the version of an interface to the one with which Xen takes a question about domain 0.
func findVersion(name string, version *uint32, ask func() error) error {
	for *version = newestInterface; *version >= oldestInterface; *version-- {
		err := ask()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EACCES): // another version
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("%w: Xen lets only a control domain do that", ErrPermission)
		default:
			return fmt.Errorf("%w: ask Xen about domain 0: %w", ErrNoXen, err)
		}
	}
	return fmt.Errorf("%w: Xen has a %s interface that is not between %#x and %#x", errors.ErrUnsupported, name, oldestInterface, newestInterface)
}

// address is where Xen finds a part of the area.
func (x *host) address(at int) uint64 { return uint64(uintptr(unsafe.Pointer(&x.area()[at]))) }

// control makes a domctl: union is what the operation's part of struct xen_domctl begins with, extra what a pointer in it
// leads to, which the caller has put there as x.address(extraAt). It returns copies of both as Xen left them.
func (x *host) control(cmd uint32, domain uint16, union, extra []byte) (result, error) {
	header := le.AppendUint32(nil, cmd)
	header = le.AppendUint32(header, x.domctl)
	header = le.AppendUint64(header, uint64(domain)) // and padding
	r, err := x.operate(callDomctl, header, union, extra)
	if err != nil {
		return result{}, fmt.Errorf("domctl %d of domain %d: %w", cmd, domain, err)
	}
	return r, nil
}

// system makes a sysctl, as control makes a domctl.
func (x *host) system(cmd uint32, union, extra []byte) (result, error) {
	header := le.AppendUint32(nil, cmd)
	header = le.AppendUint32(header, x.sysctl)
	r, err := x.operate(callSysctl, header, union, extra)
	if err != nil {
		return result{}, fmt.Errorf("sysctl %d: %w", cmd, err)
	}
	return r, nil
}

func (x *host) operate(call uint64, header, union, extra []byte) (result, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	a := x.area()
	if len(union) > unionSize || len(extra) > areaSize-extraAt {
		return result{}, unix.E2BIG
	}
	at, end := len(header), len(header)+unionSize
	clear(a[:end])
	copy(a, header)
	copy(a[at:], union)
	copy(a[extraAt:], extra)
	if _, err := x.hypercall(call, x.address(0)); err != nil {
		return result{}, err
	}
	return result{slices.Clone(a[at:end]), slices.Clone(a[extraAt : extraAt+len(extra)])}, nil
}

// result is what an operation left in its structure and in what that points to.
type result struct{ union, extra []byte }

// unionSize is that of what differs between the operations of an interface.
const unionSize = 128

// memory makes a memory operation and returns its number, and what it left in arg and extra.
func (x *host) memory(op uint64, arg, extra []byte) (uint64, result, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	a := x.area()
	if len(extra) > areaSize-extraAt {
		return 0, result{}, unix.E2BIG
	}
	copy(a, arg)
	copy(a[extraAt:], extra)
	at := uint64(0)
	if len(arg) > 0 {
		at = x.address(0)
	}
	n, err := x.hypercall(callMemoryOp, op, at)
	if err != nil {
		return 0, result{}, fmt.Errorf("memory operation %d: %w", op, err)
	}
	return n, result{slices.Clone(a[:len(arg)]), slices.Clone(a[extraAt : extraAt+len(extra)])}, nil
}

// isMemory reports whether a page is memory to an HVM or PVH guest, be it its own or a grant of another domain. It asks
// for what is there and fills nothing (populate on demand, paging).
func (x *host) isMemory(domain uint16, page uint64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	// struct xen_hvm_get_mem_type: domid, mem_type, padding, pfn.
	a := x.area()[:16]
	clear(a)
	le.PutUint16(a, domain)
	le.PutUint64(a[8:], page)
	_, err := x.hypercall(callHVMOp, hvmMemType, x.address(0))
	return err == nil && le.Uint16(a[2:]) != hvmDevice
}

// pageInfoMax is how many frames Xen tells the types of at a time.
const pageInfoMax = 1024

// Types of frames, domctl.h; a pinned page table has a bit more.
const (
	typeMask   = 7 << 28
	typeL1     = 1 << 28
	typeL4     = 4 << 28
	typeBroken = 0xd << 28 // and above: nothing to look at
)

// types asks for those of frames (gfns of an HVM guest, machine frames of a PV guest). A frame that is not the domain's is
// typeAbsent.
func (x *host) types(domain uint16, frames []uint64) ([]uint32, error) {
	out := make([]uint32, 0, len(frames))
	for part := range slices.Chunk(frames, pageInfoMax) {
		extra := make([]byte, 0, len(part)*8)
		for _, f := range part {
			extra = le.AppendUint64(extra, f)
		}
		union := le.AppendUint64(nil, uint64(len(part)))
		union = le.AppendUint64(union, x.address(extraAt))
		r, err := x.control(domctlPageInfo, domain, union, extra)
		if err != nil {
			return nil, err
		}
		for i := range part {
			out = append(out, uint32(le.Uint64(r.extra[i*8:])))
		}
	}
	return out, nil
}
