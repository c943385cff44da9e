package ksym

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"vmscope/mem"
)

// CoreInfo is VMCOREINFO: lines of KEY=VALUE that a kernel keeps in its memory
// for those who read its dumps (kernel/vmcore_info.c, before 6.9
// kernel/crash_core.c; Documentation/admin-guide/kdump/vmcoreinfo.rst).
//
// It is a claim of the guest. Anyone who can write a page of the guest can
// write such a text.
type CoreInfo struct {
	// Places are where the text was found; the kernel keeps two copies.
	Places []mem.PA
	// Conflicts are keys that occur with different values; the first counts.
	Conflicts []string

	text   string
	values map[string]string
}

// coreInfoMax bounds the text: the kernel gives it one page (VMCOREINFO_BYTES).
const coreInfoMax = mem.PageSize

const coreInfoStart = "OSRELEASE="

// ParseVMCoreInfo reads the text at the start of b, up to a NUL, the end of b, or
// 4096 bytes. It must begin with OSRELEASE=, as all kernels write it; lines that
// are not KEY=VALUE in printable characters end it.
func ParseVMCoreInfo(b []byte) (*CoreInfo, error) {
	b = b[:min(len(b), coreInfoMax)]
	if !bytes.HasPrefix(b, []byte(coreInfoStart)) {
		return nil, fmt.Errorf("VMCOREINFO text does not begin with %s: %w", coreInfoStart, mem.ErrInconsistent)
	}
	end := 0
	for end < len(b) && (b[end] == '\n' || ' ' <= b[end] && b[end] < 0x7f) {
		end++
	}
	c := &CoreInfo{text: string(b[:end]), values: make(map[string]string)}
	for line := range strings.SplitSeq(c.text, "\n") {
		k, v, ok := strings.Cut(line, "=")
		if !ok || k == "" {
			continue
		}
		if old, dup := c.values[k]; !dup {
			c.values[k] = v
		} else if old != v {
			c.Conflicts = append(c.Conflicts, k)
		}
	}
	// The least that makes it of use: without any symbol it is a stray text.
	if len(c.values) < 4 || !strings.Contains(c.text, "\nSYMBOL(") {
		return nil, fmt.Errorf("VMCOREINFO text without symbols: %w", mem.ErrInconsistent)
	}
	return c, nil
}

// Text is the whole text.
func (c *CoreInfo) Text() string { return c.text }

// Value is the value of a key such as "SYMBOL(_stext)" or "PAGESIZE".
func (c *CoreInfo) Value(key string) (string, bool) {
	v, ok := c.values[key]
	return v, ok
}

// OSRelease is the kernel's release as uname -r prints it.
func (c *CoreInfo) OSRelease() string { return c.values["OSRELEASE"] }

// BuildID is the hexadecimal build id of the kernel, "" if it tells none.
func (c *CoreInfo) BuildID() string { return c.values["BUILD-ID"] }

// Symbol is the address of a symbol, KASLR included.
func (c *CoreInfo) Symbol(name string) (mem.VA, bool) {
	v, ok := c.hex("SYMBOL(" + name + ")")
	return mem.VA(v), ok
}

// KernelOffset is how far KASLR moved the kernel from where it was linked, in
// bytes.
func (c *CoreInfo) KernelOffset() (uint64, bool) { return c.hex("KERNELOFFSET") }

// hex reads a value that the kernel prints as %lx.
func (c *CoreInfo) hex(key string) (uint64, bool) {
	v, err := strconv.ParseUint(c.values[key], 16, 64)
	return v, err == nil
}

// Number is a constant of the kernel, such as phys_base; those that it prints
// as a hexadecimal number keep their bits.
func (c *CoreInfo) Number(name string) (int64, bool) { return c.number("NUMBER(" + name + ")") }

// Offset is that of a member, "list_head.next", in bytes.
func (c *CoreInfo) Offset(member string) (int64, bool) { return c.number("OFFSET(" + member + ")") }

// Size is that of a type in bytes.
func (c *CoreInfo) Size(typ string) (int64, bool) { return c.number("SIZE(" + typ + ")") }

// Length is that of an array, in elements.
func (c *CoreInfo) Length(array string) (int64, bool) { return c.number("LENGTH(" + array + ")") }

// PageSize is the kernel's page size in bytes.
func (c *CoreInfo) PageSize() (int64, bool) { return c.number("PAGESIZE") }

func (c *CoreInfo) number(key string) (int64, bool) {
	s, ok := c.values[key]
	if !ok {
		return 0, false
	}
	if h, ok := strings.CutPrefix(s, "0x"); ok {
		v, err := strconv.ParseUint(h, 16, 64)
		return int64(v), err == nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	return v, err == nil
}

// Config is the value of a configuration option, "y" for CONFIG_X86_PAE=y,
// where name is "X86_PAE".
func (c *CoreInfo) Config(name string) (string, bool) { return c.Value("CONFIG_" + name) }

// Kallsyms says where the kernel's own symbol table is; ok is false where the
// text does not say it, before Linux 6.0. At checks it.
func (c *CoreInfo) Kallsyms() (p Places, ok bool) {
	for name, at := range map[string]*mem.VA{
		"kallsyms_num_syms":    &p.NumSyms,
		"kallsyms_names":       &p.Names,
		"kallsyms_token_table": &p.TokenTable,
		"kallsyms_token_index": &p.TokenIndex,
		"kallsyms_offsets":     &p.Offsets,
	} {
		if *at, ok = c.Symbol(name); !ok {
			return Places{}, false
		}
	}
	p.RelativeBase, _ = c.Symbol("kallsyms_relative_base") // none in a place-relative table
	return p, true
}
