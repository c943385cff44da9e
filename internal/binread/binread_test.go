package binread

import (
	"bytes"
	"errors"
	"testing"

	"vmscope/mem"
)

func TestNumbers(t *testing.T) {
	b := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	r := New("record", b)
	if a, b, c, d := r.U8(), r.U16(), r.U32(), r.U64(); a != 1 || b != 0x0302 || c != 0x07060504 || d != 0x0f0e0d0c0b0a0908 {
		t.Errorf("little: %#x %#x %#x %#x", a, b, c, d)
	}
	r = NewBig("record", b)
	if a, b, c, d := r.U8(), r.U16(), r.U32(), r.U64(); a != 1 || b != 0x0203 || c != 0x04050607 || d != 0x08090a0b0c0d0e0f {
		t.Errorf("big: %#x %#x %#x %#x", a, b, c, d)
	}
	if r.Left() != 0 || r.Err() != nil {
		t.Errorf("left %d, %v", r.Left(), r.Err())
	}
}

func TestFailureSticks(t *testing.T) {
	r := New("record", []byte{1, 2, 3, 4, 5, 6})
	r.U32()
	if v := r.U32(); v != 0 {
		t.Errorf("read past the end gave %#x", v)
	}
	if v := r.U8(); v != 0 { // two bytes are left, but the record is broken
		t.Errorf("read after the failure gave %#x", v)
	}
	var e *Error
	if !errors.As(r.Err(), &e) || e.Off != 4 || e.Need != 4 || e.Len != 6 || e.What != "record" {
		t.Errorf("error %#v", r.Err())
	}
	if !errors.Is(r.Err(), mem.ErrInconsistent) {
		t.Error("not of the class ErrInconsistent")
	}
	if r.Left() != 0 {
		t.Error("Left after a failure must be 0")
	}
	r.Fail(errors.New("later"))
	if !errors.As(r.Err(), &e) {
		t.Error("a later failure hides the first")
	}
}

func TestPlaces(t *testing.T) {
	r := New("record", []byte("\x01ab\x00cdefgh"))
	r.U8()
	if s := r.CString(2); string(s) != "ab" || r.Off() != 4 {
		t.Errorf("%q, at %d", s, r.Off())
	}
	r.U8()
	r.Align(4)
	if r.Off() != 8 {
		t.Errorf("aligned to %d", r.Off())
	}
	r.Seek(4)
	if s := r.CString(3); s != nil || r.Err() == nil {
		t.Errorf("unterminated string: %q", s)
	}
	for _, n := range []int{-1, 11} {
		r := New("record", make([]byte, 10))
		r.Seek(n)
		if r.Err() == nil {
			t.Errorf("Seek(%d) outside", n)
		}
	}
	for _, n := range []int{-1, 11, int(^uint(0) >> 1)} {
		r := New("record", make([]byte, 10))
		if r.Bytes(n) != nil || r.Err() == nil {
			t.Errorf("Bytes(%d) outside", n)
		}
		r = New("record", bytes.Repeat([]byte("x"), 10))
		if r.CString(n) != nil || r.Err() == nil {
			t.Errorf("CString(%d) without NUL", n)
		}
	}
}

// FuzzReader lets the input choose the reads as well as the bytes: the offset
// never leaves the slice, never goes back unasked, and a failure stays.
func FuzzReader(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte("12348bcsa"))
	f.Fuzz(func(t *testing.T, b, ops []byte) {
		r := New("fuzz", b)
		for i, op := range ops {
			before, err := r.Off(), r.Err()
			switch op % 9 {
			case 0:
				r.U8()
			case 1:
				r.U16()
			case 2:
				r.U32()
			case 3:
				r.U64()
			case 4:
				r.Bytes(int(int8(op)))
			case 5:
				r.CString(int(int8(op)))
			case 6:
				r.Align(1 << (op % 5))
			case 7:
				r.Skip(i)
			case 8:
				r.Seek(int(int8(op)))
				before = 0
			}
			if r.Off() < before || r.Off() > len(b) || r.Left() < 0 || r.Left() > len(b) {
				t.Fatalf("offset %d after %d of %d", r.Off(), before, len(b))
			}
			if err != nil && r.Err() != err {
				t.Fatal("the first failure was replaced")
			}
		}
	})
}
