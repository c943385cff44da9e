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
	callMemoryOp   = 12
	callXenVersion = 17
	callHVMOp      = 34
	callDomctl     = 36
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

// The interface of domctl has a version, which must match exactly. It grows; from the newest imaginable downwards they are
// tried until Xen takes one. 0x10 is that of Xen 4.11.
const (
	newestDomctl = 0x40
	oldestDomctl = 0x10
	// domctlGPABits is the version since which struct xen_domctl_getdomaininfo has gpaddr_bits in front of the architecture's
	// configuration (Xen 4.16, commit "xen: Introduce "gpaddr_bits" field to XEN_DOMCTL_getdomaininfo").
	domctlGPABits = 0x14
)

// host is a Xen host seen from its dom0. Its methods are safe for concurrent use.
type host struct {
	hypervisor
	mu     sync.Mutex // guards the area
	domctl uint32     // version of the interface
}

// extraAt is where the area has what an operation's structure points to.
const extraAt = 4096

// openHost finds out which version of the interface Xen has.
func openHost(h hypervisor) (*host, error) {
	x := &host{hypervisor: h}
	for v := uint32(newestDomctl); v >= oldestDomctl; v-- {
		x.domctl = v
		_, err := x.control(domctlInfo, 0, nil, nil)
		switch {
		case err == nil:
			return x, nil
		case errors.Is(err, unix.EACCES): // another version
		case errors.Is(err, unix.EPERM):
			return nil, fmt.Errorf("%w: Xen lets only a control domain do that", ErrPermission)
		default:
			return nil, fmt.Errorf("%w: ask Xen about domain 0: %w", ErrNoXen, err)
		}
	}
	return nil, fmt.Errorf("%w: Xen has a domctl interface that is not between %#x and %#x", errors.ErrUnsupported, oldestDomctl, newestDomctl)
}

// address is where Xen finds a part of the area.
func (x *host) address(at int) uint64 { return uint64(uintptr(unsafe.Pointer(&x.area()[at]))) }

// control makes a domctl: union is what the operation's part of struct xen_domctl begins with, extra what a pointer in it
// leads to, which the caller has put there as x.address(extraAt). It returns copies of both as Xen left them.
func (x *host) control(cmd uint32, domain uint16, union, extra []byte) (result, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	a := x.area()
	if len(union) > domctlUnion || len(extra) > areaSize-extraAt {
		return result{}, fmt.Errorf("domctl %d: %w", cmd, unix.E2BIG)
	}
	clear(a[:domctlHeader+domctlUnion])
	le.PutUint32(a, cmd)
	le.PutUint32(a[4:], x.domctl)
	le.PutUint16(a[8:], domain)
	copy(a[domctlHeader:], union)
	copy(a[extraAt:], extra)
	if _, err := x.hypercall(callDomctl, x.address(0)); err != nil {
		return result{}, fmt.Errorf("domctl %d of domain %d: %w", cmd, domain, err)
	}
	return result{slices.Clone(a[domctlHeader : domctlHeader+domctlUnion]), slices.Clone(a[extraAt : extraAt+len(extra)])}, nil
}

// result is what an operation left in its structure and in what that points to.
type result struct{ union, extra []byte }

const (
	domctlHeader = 16
	domctlUnion  = 128
)

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

// version is Xen's, such as 4.17.
func (x *host) version() (string, error) {
	v, err := x.hypercall(callXenVersion, 0, 0)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d.%d", v>>16, v&0xffff), nil
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
