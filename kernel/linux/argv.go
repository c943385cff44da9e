package linux

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"vmscope/kernel"
	"vmscope/mem"
)

// ErrTruncated says that a guest's text is longer than is read of it.
var ErrTruncated = errors.New("longer than is read")

// maxArgs bounds the command line of one process in a list: a guest of many
// processes with arguments of megabytes each must not fill our memory.
const maxArgs = 128 << 10

// area is a buffer for bytes of a process.
type area struct{ buf []byte }

// read reads size bytes at va, at most limit, into the area's buffer, which the
// next read overwrites. Beside an error it returns what lies before the first
// byte that could not be read. The buffer grows with what is read, not with
// what the guest says.
func (a *area) read(s *mem.Space, va mem.VA, size, limit uint64) ([]byte, error) {
	var cut error
	if size > limit {
		cut = fmt.Errorf("%d bytes: %w", size, ErrTruncated)
		size = limit
	}
	b := a.buf[:0]
	for uint64(len(b)) < size {
		n := min(size-uint64(len(b)), mem.PageSize-uint64(va)%mem.PageSize)
		at := len(b)
		if cap(b) < at+int(n) {
			b = append(b, make([]byte, n)...)
		}
		b = b[:at+int(n)]
		k, err := s.Read(b[at:], va)
		if err != nil {
			a.buf = b
			return b[:at+k], err
		}
		va += mem.VA(n)
	}
	a.buf = b
	return b, cut
}

// split cuts text at its NULs. One that ends the text ends its last string; a
// text without any is one string.
func split(text []byte) []kernel.Text {
	if len(text) == 0 {
		return nil
	}
	all := string(bytes.TrimSuffix(text, []byte{0}))
	out := make([]kernel.Text, 0, 1+strings.Count(all, "\x00"))
	for s := range strings.SplitSeq(all, "\x00") {
		out = append(out, kernel.Text(s))
	}
	return out
}

// cmdline is what /proc/PID/cmdline shows of an mm_struct (get_mm_cmdline in
// fs/proc/base.c): the argument vector, or the title that the process wrote
// over it, which may go on into the environment behind.
func (r *reader) cmdline(s *mem.Space, mm mem.VA) ([]kernel.Text, error) {
	w := loadsOf(r.v.Mem)
	arg, argEnd := w.ptr(r.s.ArgStart.At(mm)), w.ptr(r.s.ArgEnd.At(mm))
	env, envEnd := w.ptr(r.s.EnvStart.At(mm)), w.ptr(r.s.EnvEnd.At(mm))
	if w.err != nil {
		return nil, w.err
	}
	// Not yet far enough in execve(2), or nothing there.
	if envEnd == 0 || arg >= argEnd {
		return nil, nil
	}
	if env != argEnd || envEnd < env {
		envEnd = argEnd
	}
	// The last byte of the vector is NUL unless something was written over it.
	last, err := s.Uint(argEnd-1, 1)
	if err == nil && last != 0 {
		title, err := r.area.read(s, arg, min(uint64(envEnd-arg), mem.PageSize), mem.PageSize)
		if i := bytes.IndexByte(title, 0); i >= 0 {
			title, err = title[:i+1], nil
		}
		return split(title), err
	}
	text, err := r.area.read(s, arg, uint64(argEnd-arg), maxArgs)
	return split(text), err
}
