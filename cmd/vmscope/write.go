package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/mem"
)

// maxWrite bounds one write: this command is for values, not for images.
const maxWrite = 64 << 10

func (a *app) writeCmd() *cobra.Command {
	var p place
	var allow bool
	var hexBytes, str string
	var u8, u16, u32, u64 string
	c := &cobra.Command{
		Use:   "write TARGET {--pa A | --va A [--pid N] | --sym NAME} {--hex BYTES | --u32 N | …} --allow-write",
		Short: "Change the guest's memory (off unless --allow-write is given)",
		Long: `Change the guest's memory and print the bytes before and after. Nothing is
written without --allow-write: then the present bytes are shown, and the status
is 2. A wrong write crashes the guest.`,
		Example: `  vmscope write web1 --sym panic_timeout --u32 10 --allow-write`,
		Args:    targetAnd(0), ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := value(hexBytes, str, u8, u16, u32, u64)
			if err != nil {
				return err
			}
			if !allow {
				err := a.view(cmd, args[0], func(v *vmscope.View) error {
					t, err := p.find(v)
					if err != nil {
						return err
					}
					return a.show(v, "is    ", t, len(data))
				})
				return errors.Join(err, errors.New("nothing was written: add --allow-write to change the guest's memory"))
			}
			ctx := cmd.Context()
			g, err := vmscope.Open(ctx, args[0], append(a.options(), vmscope.Writable())...)
			if err != nil {
				return err
			}
			defer g.Close()
			return g.Update(ctx, func(tx *vmscope.Tx) error {
				t, err := p.find(tx.View)
				if err != nil {
					return err
				}
				if err := a.show(tx.View, "before", t, len(data)); err != nil {
					return err
				}
				if t.space == nil {
					_, err = tx.WritePhys(data, mem.PA(t.addr))
				} else {
					_, err = tx.Write(t.space, data, mem.VA(t.addr))
				}
				return errors.Join(err, a.show(tx.View, "after ", t, len(data)))
			})
		},
	}
	p.flags(c)
	f := c.Flags()
	f.BoolVar(&allow, "allow-write", false, "really write")
	f.StringVar(&hexBytes, "hex", "", "bytes in hexadecimal, e.g. 90909090")
	f.StringVar(&str, "string", "", "text and a NUL behind it")
	f.StringVar(&u8, "u8", "", "one byte")
	f.StringVar(&u16, "u16", "", "two bytes, little endian")
	f.StringVar(&u32, "u32", "", "four bytes, little endian")
	f.StringVar(&u64, "u64", "", "eight bytes, little endian")
	c.MarkFlagsMutuallyExclusive("hex", "string", "u8", "u16", "u32", "u64")
	return c
}

func value(hexBytes, str, u8, u16, u32, u64 string) ([]byte, error) {
	switch {
	case hexBytes != "":
		b, err := hex.DecodeString(strings.Map(func(r rune) rune {
			if r == ' ' || r == ':' {
				return -1
			}
			return r
		}, hexBytes))
		if err != nil || len(b) > maxWrite {
			return nil, fmt.Errorf("--hex %q: give pairs of hexadecimal digits, at most %d", hexBytes, maxWrite)
		}
		return b, nil
	case str != "":
		return append([]byte(str), 0), nil
	}
	for n, s := range map[int]string{1: u8, 2: u16, 4: u32, 8: u64} {
		if s == "" {
			continue
		}
		v, err := number(s)
		if err != nil {
			return nil, err
		}
		if n < 8 && v>>(8*n) != 0 {
			return nil, fmt.Errorf("%s does not fit into %d bytes", s, n)
		}
		b := binary.LittleEndian.AppendUint64(nil, v)
		return b[:n], nil
	}
	return nil, errors.New("write needs a value: --hex, --string, --u8, --u16, --u32 or --u64")
}

// show prints the bytes at a place under a word.
func (a *app) show(v *vmscope.View, word string, t target, n int) error {
	b := make([]byte, n)
	got, err := t.read(v, b)
	if a.json {
		return errors.Join(a.object(struct {
			When string `json:"when"`
			Addr mem.VA `json:"addr"`
			Data string `json:"data"`
		}{strings.TrimSpace(word), mem.VA(t.addr), hex.EncodeToString(b[:got])}), err)
	}
	fmt.Fprintf(a.out, "%s %#x: % x\n", word, t.addr, b[:got])
	return err
}
