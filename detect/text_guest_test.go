package detect

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"testing"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

var textKernels = []string{"bullseye-cloud", "bookworm-cloud", "sid-cloud"}

// TestReference bends code and read-only data in ways that only a comparison
// with what they were shows.
func TestReference(t *testing.T) {
	for _, name := range textKernels {
		t.Run(name, func(t *testing.T) {
			lab := guestlab.Boot(t, guestlab.Config{Kernel: name, MemoryMiB: 256, Modules: []string{"loop"}})
			g, err := vmscope.Open(t.Context(), lab.Name(), vmscope.Writable(), vmscope.Paused())
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			vendor := vendorOf(t, lab)
			ref := NewReference()
			checks := []Detector{Text{ref}, Rodata{ref}}
			look := func(v *vmscope.View) Result {
				r := Sweep(t.Context(), v, checks)
				if err := r.Err(); err != nil {
					t.Error(err)
				}
				return r
			}
			silent := func() {
				t.Helper()
				if err := g.View(t.Context(), func(v *vmscope.View) error {
					for _, f := range append(look(v).Findings, vendorLook(t, v, vendor).Findings...) {
						t.Errorf("nothing was changed: %s: %s %+v", f.ID, f.Summary, f.Evidence)
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			silent()
			for _, c := range bendings {
				t.Run(c.name, func(t *testing.T) {
					v := &victim{T: t, g: g, lab: lab}
					v.tampered(func() {
						words := c.do(v)
						demand(t, look(v.tx.View), c.check, words)
						if c.file {
							demand(t, vendorLook(t, v.tx.View, vendor), c.check, append(words, "build id"))
						}
					})
					silent()
				})
			}
			redirects(t, &victim{T: t, g: g, lab: lab}, vendor)
			rewrites(t, &victim{T: t, g: g, lab: lab}, func(v *vmscope.View) Result {
				r := look(v)
				r.Findings = append(r.Findings, vendorLook(t, v, vendor).Findings...)
				return r
			})
			silent()
		})
	}
}

// vendorOf is the files that a guest was booted from.
func vendorOf(t *testing.T, lab *guestlab.Guest) *Vendor {
	t.Helper()
	v, err := OpenVendor(t.Context(), lab.Kernel().Image(), lab.Kernel().ModuleDir())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// vendorLook looks at a guest for the first time, with the vendor's files.
func vendorLook(t *testing.T, v *vmscope.View, vendor *Vendor) Result {
	t.Helper()
	ref := NewReference()
	ref.Vendor = vendor
	r := Sweep(t.Context(), v, []Detector{Text{ref}, Rodata{ref}})
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	return r
}

// bendings are what only a comparison shows. file says that one with the vendor's
// file does.
var bendings = []struct {
	name  string
	check string
	file  bool
	do    func(v *victim) (words []string)
}{
	{"a byte amid a function", "text", true, func(v *victim) []string {
		at := v.symbol("commit_creds") + 0x20
		var b [1]byte
		if _, err := v.tx.Mem.Read(b[:], at); err != nil {
			v.Fatal(err)
		}
		v.write(at, []byte{b[0] ^ 0xff})
		return []string{"commit_creds+0x20", fmt.Sprintf("%#x", uint64(at)), "the kernel"}
	}},
	{"a byte of a module", "text", true, func(v *victim) []string {
		m := v.module("loop")
		at := m.Base + 0x100
		v.write(at, []byte{0x0f, 0x0b, 0x0f, 0x0b})
		return []string{"[loop]", "module loop", "0f0b0f0b"}
	}},
	{"a static call that calls nothing", "text", true, func(v *victim) []string {
		site := v.staticCall()
		v.write(site.At, nop5s[0])
		return []string{fmt.Sprintf("%#x", uint64(site.At)), hex.EncodeToString(nop5s[0])}
	}},
	{"a static call and its key, amid a module's function", "text", true, func(v *victim) []string {
		site, to := v.staticCall(), v.module("loop").Base+0x43
		v.put(site.Key, uint64(to))
		v.call(site.At, to)
		return []string{fmt.Sprintf("%#x", uint64(to))}
	}},
	{"system call table", "rodata", true, func(v *victim) []string {
		table := v.symbol("sys_call_table")
		v.put(table+8*63, uint64(v.symbol("commit_creds")))
		return []string{"sys_call_table+0x1f8", "commit_creds", "newuname"}
	}},
	{"operations of files", "rodata", true, func(v *victim) []string {
		at := v.member(v.symbol("def_blk_fops"), "file_operations", "open")
		v.put(at, uint64(v.nowhere()))
		return []string{"def_blk_fops", "init_task"}
	}},
	{"read-only data of a module", "rodata", true, func(v *victim) []string {
		s, err := v.tx.LookupSymbol("lo_fops [loop]")
		if err != nil {
			v.Fatal(err)
		}
		at := v.member(s.Addr, "block_device_operations", "ioctl")
		v.put(at, uint64(v.nowhere()))
		return []string{"lo_fops [loop]", "module loop"}
	}},
	{"interrupt gate", "rodata", false, func(v *victim) []string {
		at := v.symbol("idt_table") + 16*14
		v.write(at, []byte{1, 2})
		return []string{"idt_table+0xe0"}
	}},
}

// redirects leads a tracepoint's static call to a function of the kernel, by its
// key as well, as the kernel does: to what the vendor's file has a probe for, and
// to a function of another prototype.
func redirects(t *testing.T, v *victim, vendor *Vendor) {
	for _, c := range []struct {
		to    string
		found bool
	}{{"trace_event_raw_event_sched_switch", false}, {"commit_creds", true}} {
		t.Run("static call and its key, "+c.to, func(t *testing.T) {
			v := &victim{T: t, g: v.g, lab: v.lab}
			v.tampered(func() {
				key, to := v.symbol("__SCK__tp_func_sched_switch"), v.symbol(c.to)
				site := v.site(func(s linux.PatchSite, _ []byte) bool { return s.Kind == linux.StaticCall && s.Key == key })
				v.put(key, uint64(to))
				v.call(site.At, to)
				v.hook(v.symbol("__SCT__tp_func_sched_switch"), to)
				r := vendorLook(t, v.tx.View, vendor)
				if c.found {
					demand(t, r, "text", []string{fmt.Sprintf("%#x", uint64(site.At)), c.to, "build id"})
				} else if len(r.Findings) > 0 {
					t.Errorf("the kernel itself does that: %+v", r.Findings)
				}
			})
		})
	}
}

// hook writes a jump to an address over the code at another.
func (v *victim) hook(at, to mem.VA) {
	v.Helper()
	b := binary.LittleEndian.AppendUint32([]byte{opJump}, uint32(to-(at+5)))
	v.write(at, b)
}

// site is a place of the kernel's text that is rewritten, by what it is and the
// five bytes there.
func (v *victim) site(is func(linux.PatchSite, []byte) bool) linux.PatchSite {
	v.Helper()
	sites, err := v.tx.PatchSites()
	if err != nil {
		v.Fatal(err)
	}
	start, end := v.symbol("_stext"), v.symbol("_etext")
	for _, s := range sites {
		var b [5]byte
		if s.At < start || s.At >= end {
			continue
		}
		if _, err := v.tx.Mem.Read(b[:], s.At); err == nil && is(s, b[:]) {
			return s
		}
	}
	v.Fatal("no such place")
	return linux.PatchSite{}
}

// jumpLabel is a place of the kernel's text with a jump label of five bytes.
func (v *victim) jumpLabel() linux.PatchSite {
	v.Helper()
	return v.site(func(s linux.PatchSite, b []byte) bool { return s.Kind == linux.JumpLabel && begins(b, nop5s) })
}

// staticCall is a place of the kernel's text that calls the function of a static
// call.
func (v *victim) staticCall() linux.PatchSite {
	v.Helper()
	return v.site(func(s linux.PatchSite, b []byte) bool {
		return s.Kind == linux.StaticCall && s.Key != 0 && b[0] == opCall
	})
}

// ftraceSite is where a function calls ftrace.
func (v *victim) ftraceSite(function string) mem.VA {
	v.Helper()
	sites, err := v.tx.PatchSites()
	if err != nil {
		v.Fatal(err)
	}
	entry := v.symbol(function)
	i := slices.IndexFunc(sites, func(s linux.PatchSite) bool { return s.Kind == linux.FtraceSite && s.At >= entry && s.At-entry < 8 })
	if i < 0 {
		v.Fatalf("%s cannot be traced", function)
	}
	return sites[i].At
}

// call writes a call of an address over the code at another.
func (v *victim) call(at, to mem.VA) {
	v.Helper()
	v.write(at, binary.LittleEndian.AppendUint32([]byte{opCall}, uint32(to-(at+5))))
}
