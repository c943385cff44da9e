package main

import (
	"bytes"
	"testing"
)

// console hands on what a kernel's console does of what it is sent, as __hvc_poll of Linux does.
func console(b []byte) (out []byte) {
	pressed := false
	for _, c := range b {
		switch {
		case c == 0x0f:
			if pressed = !pressed; pressed {
				continue
			}
		case pressed: // a SysRq
			pressed = false
			continue
		}
		out = append(out, c)
	}
	return out
}

func TestPlain(t *testing.T) {
	for _, b := range [][]byte{nil, {0x0f}, {1, 0x0f, 'b'}, {0x0f, 0x0f, 0x0f}, []byte("no such byte")} {
		if got := console(plain(b)); !bytes.Equal(got, b) {
			t.Errorf("%x arrives as %x", b, got)
		}
	}
}
