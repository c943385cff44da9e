package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// symbolRow is one line of sym.
type symbolRow struct {
	Name   kernel.Text `json:"name"`
	Addr   mem.VA      `json:"addr"`
	Type   string      `json:"type"`
	Module kernel.Text `json:"module,omitempty"`
	Offset *uint64     `json:"offset,omitempty"` // of the address that was asked for
}

func row(s ksym.Symbol, module kernel.Text) symbolRow {
	return symbolRow{Name: kernel.Text(s.Name), Addr: s.Addr, Type: string(rune(s.Type)), Module: module}
}

func (a *app) symCmd() *cobra.Command {
	c := a.seeMore("sym TARGET [NAME | ADDRESS]...", "Look up kernel symbols by name or address, or list them all", targetAnd(-1),
		func(_ *cobra.Command, v *vmscope.View, names []string) error {
			if len(names) == 0 {
				return a.allSymbols(v)
			}
			var failed error
			for _, name := range names {
				failed = errors.Join(failed, a.oneSymbol(v, name))
			}
			return failed
		})
	c.Long = `Look up symbols of the kernel and its modules. A NAME gives its address, or all
of them if several symbols bear it; "name [module]" and "module:name" are those
of a module. An ADDRESS (0x…) gives the symbol that it lies in. Without either
all symbols are listed, as /proc/kallsyms does.`
	c.Example = `  vmscope sym web1 init_task sys_call_table
  vmscope sym web1 0xffffffffa2c01234
  vmscope sym web1 | grep ext4`
	return c
}

func (a *app) oneSymbol(v *vmscope.View, name string) error {
	if strings.HasPrefix(name, "0x") {
		va, err := number(name)
		if err != nil {
			return err
		}
		s, off, err := v.Nearest(mem.VA(va))
		if err != nil {
			return err
		}
		r := row(s.Symbol, s.Module)
		r.Offset = &off
		return a.printSymbol(r)
	}
	r, err := v.Resolver()
	all, lerr := r.LookupAll(name)
	if len(all) == 0 {
		return errors.Join(lerr, err)
	}
	for _, s := range all { // a static function may have several namesakes
		if err := a.printSymbol(row(s.Symbol, s.Module)); err != nil {
			return err
		}
	}
	return lerr
}

func (a *app) printSymbol(r symbolRow) error {
	if a.json {
		return a.object(r)
	}
	name := r.Name.String()
	if r.Offset != nil {
		name = fmt.Sprintf("%s+%#x", name, *r.Offset)
	}
	if r.Module != "" {
		name += "\t[" + r.Module.String() + "]"
	}
	_, err := fmt.Fprintf(a.out, "%016x %s %s\n", uint64(r.Addr), r.Type, name)
	return err
}

func (a *app) allSymbols(v *vmscope.View) error {
	for s := range v.Symbols.All() {
		if err := a.printSymbol(row(s, "")); err != nil {
			return err
		}
	}
	mods, err := v.Modules()
	for _, m := range mods {
		syms, serr := v.ModuleSymbols(m)
		if serr != nil {
			err = errors.Join(err, serr)
			continue
		}
		for s := range syms.All() {
			if err := a.printSymbol(row(s, m.Name)); err != nil {
				return err
			}
		}
	}
	return err
}

func (a *app) typeCmd() *cobra.Command {
	var module string
	c := a.seeMore("type TARGET NAME...", "Print C types of the kernel with their offsets, as pahole does", targetAnd(-1, "NAME"),
		func(_ *cobra.Command, v *vmscope.View, names []string) error {
			types, err := v.NeedTypes()
			if err == nil && module != "" {
				types, err = v.ModuleTypes(module)
			}
			if err != nil {
				return err
			}
			var failed error
			for _, name := range names {
				t, err := types.Lookup(name)
				if err == nil {
					err = a.printType(t)
				}
				failed = errors.Join(failed, err)
			}
			return failed
		})
	c.Example = `  vmscope type web1 task_struct
  vmscope type web1 --module ext4 ext4_sb_info`
	c.Flags().StringVar(&module, "module", "", "the module that brings the type")
	return c
}

func (a *app) printType(t ctype.Type) error {
	if !a.json {
		return t.Print(a.out)
	}
	type member struct {
		Name   string `json:"name,omitempty"`
		Type   string `json:"type"`
		Offset uint64 `json:"offset"`
		Size   uint64 `json:"size"`
		Bit    uint8  `json:"bit,omitempty"`
		Bits   uint8  `json:"bits,omitempty"`
	}
	row := struct {
		Name    string   `json:"name"`
		Kind    string   `json:"kind"`
		Size    uint64   `json:"size"`
		Members []member `json:"members,omitempty"`
	}{Name: t.Name(), Kind: t.Kind().String(), Size: t.Size()}
	for m := range t.Members() {
		row.Members = append(row.Members, member{m.Name, m.Type.String(), m.Offset, m.Size(), m.BitOffset, m.BitSize})
	}
	return a.object(row)
}
