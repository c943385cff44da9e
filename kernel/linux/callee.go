package linux

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// calleeLayout is what is read of where calls lead that a kernel rewrites.
type calleeLayout struct {
	Key ctype.Field `c:"static_call_key.func,optional"` // include/linux/static_call_types.h

	Bits    ctype.Field `c:"ftrace_hash.size_bits,optional"` // kernel/trace/trace.h
	Buckets ctype.Field `c:"ftrace_hash.buckets,optional"`
	Node    ctype.Field `c:"ftrace_func_entry.hlist,optional"` // include/linux/ftrace.h
	IP      ctype.Field `c:"ftrace_func_entry.ip,optional"`
	Direct  ctype.Field `c:"ftrace_func_entry.direct,optional"`

	Dispatch ctype.Field `c:"bpf_dispatcher.func,optional"` // include/linux/bpf.h
	Image    ctype.Field `c:"bpf_dispatcher.image,optional"`
	Half     ctype.Field `c:"bpf_dispatcher.image_off,optional"`
}

// StaticCallee is the function that a static call (struct static_call_key)
// leads to, 0 if none.
func (v *View) StaticCallee(key mem.VA) (mem.VA, error) {
	l, err := layout64[calleeLayout](v.Kernel)
	if err != nil {
		return 0, err
	}
	if !l.Key.Valid() {
		return 0, fmt.Errorf("static calls: %w", errors.ErrUnsupported)
	}
	return v.Mem.Pointer(l.Key.At(key))
}

// Bounds of direct_functions; a kernel makes 2^12 buckets at most
// (FTRACE_HASH_MAX_BITS, kernel/trace/ftrace.c).
const (
	maxDirectBits  = 16
	maxDirectCalls = 1 << 20
)

// DirectCalls are the functions that ftrace's places at the entry of functions
// call without a detour over ftrace, by place. A kernel without them has
// none, which is errors.ErrUnsupported. The function that stands for all XDP
// programs is among them: before v6.1 it begins with a jump to its dispatcher.
func (v *View) DirectCalls() (map[mem.VA]mem.VA, error) {
	l, err := layout64[calleeLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	at, err := v.Symbol("direct_functions") // kernel/trace/ftrace.c
	if errors.Is(err, ksym.ErrNoSymbol) || !l.Bits.Valid() || !l.Buckets.Valid() || !l.Node.Valid() || !l.IP.Valid() || !l.Direct.Valid() {
		return nil, fmt.Errorf("direct calls of ftrace: %w", errors.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	var out map[mem.VA]mem.VA
	err = v.settle(func() error {
		out = make(map[mem.VA]mem.VA)
		if err := v.dispatched(l, out); err != nil {
			return err
		}
		hash, err := v.Mem.Pointer(at)
		if err != nil || hash == 0 {
			return err
		}
		bits, err := v.Mem.Uint(l.Bits.At(hash), int(l.Bits.Size()))
		if err != nil {
			return err
		}
		if bits > maxDirectBits {
			return errBroken("direct_functions", hash, fmt.Sprintf("2^%d buckets", bits))
		}
		buckets, err := v.Mem.Pointer(l.Buckets.At(hash))
		if err != nil || buckets == 0 {
			return err
		}
		for i := range mem.VA(1) << bits {
			var loop brent
			node, err := v.Mem.Pointer(buckets + 8*i)
			for err == nil && node != 0 {
				if len(out) >= maxDirectCalls || loop.seen(node) {
					return errBroken("direct_functions", node, "loops or does not end")
				}
				entry := node - mem.VA(l.Node.Offset)
				ip, ierr := v.Mem.Pointer(l.IP.At(entry))
				to, terr := v.Mem.Pointer(l.Direct.At(entry))
				if err = errors.Join(ierr, terr); err != nil {
					return err
				}
				out[ip] = to &^ 1 // the lowest bit asks for a jump (since v6.19)
				node, err = v.Mem.Pointer(node)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// dispatched adds where the function of the dispatcher of XDP programs jumps.
func (v *View) dispatched(l *calleeLayout, out map[mem.VA]mem.VA) error {
	d, err := v.Symbol("bpf_dispatcher_xdp")
	if errors.Is(err, ksym.ErrNoSymbol) || !l.Dispatch.Valid() || !l.Image.Valid() || l.Half.Size() != 4 {
		return nil
	}
	if err != nil {
		return err
	}
	r := loadsOf(v.Mem)
	function, image := r.ptr(l.Dispatch.At(d)), r.ptr(l.Image.At(d))
	half, err := v.Mem.Uint32(l.Half.At(d))
	if image != 0 && r.err == nil && err == nil {
		out[function] = image + mem.VA(half)
	}
	return errors.Join(r.err, err)
}
