package main

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/kernel"
	"vmscope/mem"
)

// maxRead bounds what one read command holds in memory at a time.
const readChunk = 1 << 20

func (a *app) readCmd() *cobra.Command {
	var p place
	var length string
	var raw, str bool
	var typ string
	var depth int
	c := &cobra.Command{
		Use:   "read TARGET {--pa A | --va A [--pid N] | --sym NAME}",
		Short: "Read memory: hex dump, raw bytes, text, or a typed object",
		Example: `  vmscope read web1 --sym linux_banner --string
  vmscope read web1 --sym init_task --type task_struct
  vmscope read web1 --va 0x7ffd1000 --pid 812 --len 256
  vmscope read web1 --pa 0x100000 --len 1M --raw > low.bin`,
		Args: targetAnd(0), ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := number(length)
			if err != nil {
				return err
			}
			return a.view(cmd, args[0], func(v *vmscope.View) error {
				t, err := p.find(v)
				if err != nil {
					return err
				}
				switch {
				case typ != "":
					return a.readTyped(v, t, typ, depth)
				case str:
					return a.readString(v, t, n)
				case raw:
					return a.readRaw(cmd, v, t, n)
				}
				return a.readHex(cmd, v, t, n)
			})
		},
	}
	p.flags(c)
	f := c.Flags()
	f.StringVar(&length, "len", "256", "how many bytes (K, M, G may follow); the most for --string")
	f.BoolVar(&raw, "raw", false, "the bytes themselves, to a file or a pipe")
	f.BoolVar(&str, "string", false, "text up to the first NUL")
	f.StringVar(&typ, "type", "", "an object of this C type, e.g. task_struct, with its members")
	f.IntVar(&depth, "depth", 1, "how many levels of nested structs --type shows")
	c.MarkFlagsMutuallyExclusive("raw", "string", "type")
	return c
}

// readHex dumps in pieces, so that the length costs no memory.
func (a *app) readHex(cmd *cobra.Command, v *vmscope.View, t target, n uint64) error {
	buf := make([]byte, min(n, readChunk))
	for n > 0 && cmd.Context().Err() == nil {
		got, err := t.read(v, buf[:min(n, readChunk)])
		if a.json {
			if got > 0 {
				if jerr := a.object(struct {
					Addr mem.VA `json:"addr"`
					Data string `json:"data"`
				}{mem.VA(t.addr), hex.EncodeToString(buf[:got])}); jerr != nil {
					return jerr
				}
			}
		} else {
			a.hexdump(buf[:got], t.addr)
		}
		if err != nil {
			return err
		}
		t.addr += uint64(got)
		n -= uint64(got)
	}
	return cmd.Context().Err()
}

// hexdump prints 16 bytes a line, as hexdump -C does.
func (a *app) hexdump(b []byte, at uint64) {
	for len(b) > 0 {
		line := b[:min(16, len(b))]
		var text strings.Builder
		for _, c := range line {
			if c < 0x20 || c > 0x7e {
				c = '.'
			}
			text.WriteByte(c)
		}
		left, right := line[:min(8, len(line))], line[min(8, len(line)):]
		fmt.Fprintf(a.out, "%016x  %-23s  %-23s  |%s|\n", at, fmt.Sprintf("% x", left), fmt.Sprintf("% x", right), text.String())
		at += uint64(len(line))
		b = b[len(line):]
	}
}

func (a *app) readRaw(cmd *cobra.Command, v *vmscope.View, t target, n uint64) error {
	if a.isTerminal() {
		return fmt.Errorf("--raw would write bytes of the guest to your terminal: redirect the output to a file or a pipe")
	}
	buf := make([]byte, min(n, readChunk))
	for n > 0 && cmd.Context().Err() == nil {
		got, err := t.read(v, buf[:min(n, readChunk)])
		if _, werr := a.out.Write(buf[:got]); werr != nil {
			return werr
		}
		if err != nil {
			return err
		}
		t.addr += uint64(got)
		n -= uint64(got)
	}
	return cmd.Context().Err()
}

func (a *app) readString(v *vmscope.View, t target, n uint64) error {
	s := t.space
	if s == nil {
		s = mem.NewSpace("physical", v.Phys, mem.Identity{})
	}
	b, err := s.CString(mem.VA(t.addr), int(min(n, readChunk)))
	if len(b) > 0 || err == nil {
		if a.json {
			if jerr := a.object(struct {
				Addr mem.VA      `json:"addr"`
				Text kernel.Text `json:"text"`
				Data string      `json:"data"`
			}{mem.VA(t.addr), kernel.Text(b), hex.EncodeToString(b)}); jerr != nil {
				return jerr
			}
		} else {
			fmt.Fprintln(a.out, kernel.Text(b))
		}
	}
	return err
}

func (a *app) readTyped(v *vmscope.View, t target, typ string, depth int) error {
	types, err := v.NeedTypes()
	if err != nil {
		return err
	}
	ct, err := types.Lookup(typ)
	if err != nil {
		return err
	}
	s := t.space
	if s == nil {
		s = mem.NewSpace("physical", v.Phys, mem.Identity{})
	}
	if a.json {
		buf := make([]byte, min(ct.Size(), readChunk))
		got, err := t.read(v, buf)
		if got > 0 {
			if jerr := a.object(struct {
				Addr mem.VA `json:"addr"`
				Type string `json:"type"`
				Data string `json:"data"`
			}{mem.VA(t.addr), typ, hex.EncodeToString(buf[:got])}); jerr != nil {
				return jerr
			}
		}
		return err
	}
	return ct.At(s, mem.VA(t.addr)).Print(a.out, depth)
}
