// Package linux finds a Linux kernel in a machine's memory and reads its
// structures: processes, modules, files, mounts, sockets, log.
//
// Nothing has to be supplied: addresses come from the kernel's own symbol table
// (kallsyms), layouts from its own type description (BTF), both found in RAM. Of
// kernels that were built without one of them, a file can tell it (Files).
// What differs between kernel releases is told by the presence of a type, a
// member or a symbol, never by a version number.
package linux

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"vmscope/arch"
	"vmscope/ctype"
	"vmscope/kernel/linux/infer"
	"vmscope/kernel/linux/profile"
	"vmscope/ksym"
	"vmscope/mem"
)

// Kernel is what cannot move while a kernel runs: where its image lies, its
// symbols and its types. It is immutable and safe for concurrent use.
type Kernel struct {
	Release string // as uname -r prints it
	Banner  string // as /proc/version prints it
	Arch    string // as uname -m prints it

	Text  mem.VA // of _stext
	Phys  mem.PA // where Text lies
	Slide uint64 // KASLR: distance from the address the kernel was linked for, bytes

	Root mem.PA    // page-table root that maps the kernel: init_top_pgt
	Mode arch.Mode // how the processor walks them

	Symbols *ksym.Table
	Types   *ctype.Types // nil: neither the kernel's memory nor a file tells them; TypesErr says why
	// TypesErr is why Types is nil.
	TypesErr error

	Report Report

	more     *linked // symbols that a file has; nil: none
	moreFrom *profile.Profile
	moreSame int           // how many of them are as in kallsyms
	unfit    error         // why the file's symbols were not taken
	notesID  string        // build id by the kernel's notes; "" if not known
	foreign  bool          // Types are of a file, not of the kernel's memory
	inferred *infer.Result // nil: Types and variables are known, or nothing could be inferred

	port    port
	info    *ksym.CoreInfo // by which the kernel was found; nil if it was found without
	layouts sync.Map       // reflect.Type of what was derived from it -> *bound
}

// Report says how a kernel was found: for people, and as evidence.
type Report struct {
	Steps    []Step    `json:"steps"`
	Findings []Finding `json:"findings"`
	// Contradictions are what the kernel says of itself and what does not
	// agree: signs that somebody changed it.
	Contradictions []string `json:"contradictions,omitempty"`
	// Rejected are the candidates that were no running kernel, with the reason.
	Rejected []string `json:"rejected,omitempty"`
}

// Step is one thing done to find the kernel and what it cost.
type Step struct {
	Name string        `json:"name"`
	Took time.Duration `json:"ns"`
	Note string        `json:"note,omitempty"`
}

// Finding is one fact, where it came from, and how sure it is.
type Finding struct {
	What       string `json:"what"`
	Value      string `json:"value"`
	Source     string `json:"source"`
	Confidence string `json:"confidence"` // "proved": checked against the page tables or a second source; "stated": the guest says so; "inferred": see package infer
}

// layout returns the offsets that the struct T asks for by its tags (see
// ctype.Bind), worked out once for a kernel.
func layout[T any](k *Kernel) (*T, error) {
	return derived(k, func(k *Kernel) (*T, error) {
		types, err := k.NeedTypes()
		if err != nil {
			return nil, err
		}
		t := new(T)
		return t, ctype.Bind(types, t)
	})
}

// layout64 is layout for what is not read of kernels of 32 bits: code, what
// changes it, and what only checks that are not made there ask for.
func layout64[T any](k *Kernel) (*T, error) {
	if k.Mode != nil && k.Mode.PointerSize() != 8 {
		return nil, fmt.Errorf("not read of a kernel of 32 bits: %w", errors.ErrUnsupported)
	}
	return layout[T](k)
}

// known is layout for a T that can do with what is inferred of a kernel that does
// not tell its types: there an optional member that is missing is not known, which
// does not mean that the kernel lacks it. A T is asked for by one of the two only.
func known[T any](k *Kernel) (*T, error) {
	return derived(k, func(k *Kernel) (*T, error) {
		types, err := k.NeedTypes()
		if err != nil && k.inferred != nil {
			t := new(T)
			if ierr := ctype.Bind(k.inferred.Types, t); ierr != nil {
				return nil, fmt.Errorf("%w; of what can be inferred from its memory: %w", err, ierr)
			}
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		t := new(T)
		return t, ctype.Bind(types, t)
	})
}

// Inferred is what was found out of the types of a kernel that does not tell them
// and of which no file does; nil for others, and if nothing was found out. Processes
// and Modules list by it; what they cannot tell then is named in Unknown.
func (k *Kernel) Inferred() *infer.Result {
	if k.Types != nil {
		return nil // its variables may have been inferred
	}
	return k.inferred
}

// Symbol returns the address of a kernel symbol. Where several of its name lie at
// different addresses, that is a ksym.AmbiguousError; that it is not known because
// the kernel lists functions only, an ErrNoData.
func (k *Kernel) Symbol(name string) (mem.VA, error) {
	if k.Symbols == nil && k.more == nil {
		return 0, fmt.Errorf("symbol %s: the symbols of this kernel are not known: %w", name, errors.ErrUnsupported)
	}
	s, err := ksym.Only(name, k.Named(name))
	if err != nil {
		err = k.lacks(err)
	}
	return s.Addr, err
}

// CoreInfo is the text of VMCOREINFO by which the kernel was found, "" if it was
// found without.
func (k *Kernel) CoreInfo() string {
	if k.info == nil {
		return ""
	}
	return k.info.Text()
}

// NeedTypes returns the kernel's types, or why they are not known.
func (k *Kernel) NeedTypes() (*ctype.Types, error) {
	if k.Types == nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTypes, k.TypesErr)
	}
	return k.Types, nil
}

// firstSymbol returns the address of the first of names that the kernel has.
func (k *Kernel) firstSymbol(names ...string) (addr mem.VA, name string, err error) {
	for _, n := range names {
		if a, e := k.Symbol(n); e == nil {
			return a, n, nil
		} else if err == nil {
			err = e
		}
	}
	return 0, "", err
}

// View looks at the kernel through phys. What is cached lives in phys, so a
// View is as fresh as its reader.
func (k *Kernel) View(phys mem.PhysReader) *View {
	tr := k.Mode.Kernel(phys, k.Root)
	return &View{Kernel: k, Phys: phys, Mem: mem.NewSpace("kernel", phys, tr)}
}

// View is one look at a running kernel, or at a dump of one. It is safe for
// concurrent use.
//
// Lists come back with an error that may accompany a partial list: what was
// read before the guest's structures stopped making sense.
type View struct {
	*Kernel
	Phys mem.PhysReader
	Mem  *mem.Space // the kernel's address space

	naps atomic.Int32 // how often settle waited
}
