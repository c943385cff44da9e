package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/klauspost/compress/snappy"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

func limeHead(magic string, version uint32, start, last uint64) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32([]byte(magic), version)
	b = le.AppendUint64(le.AppendUint64(b, start), last)
	return append(b, make([]byte, 8)...)
}

// makeLime writes a LiME dump (format=lime) byte by byte as its documentation
// describes it.
func makeLime(pa uint64, data []byte) []byte {
	return append(limeHead(limeMagic, 1, pa, pa+uint64(len(data))-1), data...)
}

// makeAVML writes a block of AVML's format version 2 as its source describes it.
func makeAVML(pa uint64, data []byte) []byte {
	le := binary.LittleEndian
	body := []byte("\xff\x06\x00\x00sNaPpY")
	for rest := data; len(rest) > 0; {
		p := rest[:min(len(rest), 64<<10)]
		rest = rest[len(p):]
		in, typ := snappy.Encode(nil, p), byte(0)
		if len(in) >= len(p) {
			in, typ = p, 1
		}
		n := len(in) + 4
		body = append(body, typ, byte(n), byte(n>>8), byte(n>>16))
		body = append(le.AppendUint32(body, frameSum(p)), in...)
	}
	b := append(limeHead(avmlMagic, 2, pa, pa+uint64(len(data))-1), body...)
	return le.AppendUint64(b, uint64(len(body)))
}

func limeBytes() (low, mid, high []byte) {
	low, mid, high = pattern(1, 636<<10), pattern(2, 300<<10), pattern(3, 90<<10)
	for i := 0; i < len(mid); i += 100 { // something that can be packed
		clear(mid[i:min(i+90, len(mid))])
	}
	return low, mid, high
}

func TestLimeContract(t *testing.T) {
	low, mid, high := limeBytes()
	low = low[:len(low)-1024] // 639 KiB of low RAM do not end on a page
	path := file(t, bytes.Join([][]byte{makeLime(0x1000, low), makeLime(1<<20, mid), makeLime(4<<30, high)}, nil))
	vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
		Ranges: []mem.Range{{Start: 0x1000, Size: uint64(len(low))}, {Start: 1 << 20, Size: uint64(len(mid))}, {Start: 4 << 30, Size: uint64(len(high))}},
		Bytes:  map[mem.PA][]byte{0x1000: low, 1 << 20: mid, 4 << 30: high},
	})
}

// TestAVMLFrames: frames are as many as a file of its size may have, of which there may be several TiB, and frames of a
// byte each would take more than the file.
func TestAVMLFrames(t *testing.T) {
	const zeros = 3 << 10 // in the file, of 64 KiB
	if n := maxFramesAVML(8 << 40 >> 16 * zeros); n < 8<<40>>16 {
		t.Errorf("%d frames of 8 TiB", n)
	}
	one := makeAVML(0, []byte{1})
	one = one[limeHeader+10 : len(one)-8] // its only frame
	const n = 70000
	body := append([]byte("\xff\x06\x00\x00sNaPpY"), bytes.Repeat(one, n)...)
	b := append(limeHead(avmlMagic, 2, 0, n-1), body...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(body)))
	if m, err := Open(file(t, b)); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "more frames") {
		t.Errorf("%v, %v", m, err)
	}
}

func TestAVMLContract(t *testing.T) {
	low, mid, high := limeBytes()
	// What is larger than a block of AVML is several that touch.
	path := file(t, bytes.Join([][]byte{makeAVML(4<<30, high), makeAVML(0x1000, low), makeAVML(1<<20, mid[:128<<10]), makeAVML(1<<20+128<<10, mid[128<<10:])}, nil))
	vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
		Ranges: []mem.Range{{Start: 0x1000, Size: uint64(len(low))}, {Start: 1 << 20, Size: uint64(len(mid))}, {Start: 4 << 30, Size: uint64(len(high))}},
		Bytes:  map[mem.PA][]byte{0x1000: low, 1 << 20: mid, 4 << 30: high},
	})
}

func TestLimeRefuses(t *testing.T) {
	_, data, _ := limeBytes()
	lime, avml := makeLime(0x1000, data), makeAVML(0x1000, data)
	with := func(b []byte, off int, p ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[off:], p)
		return b
	}
	for name, c := range map[string]struct {
		file []byte
		is   error
		word string
	}{
		"LiME version":      {with(lime, 4, 2), ErrFormat, "version 2"},
		"LiME, cut":         {lime[:len(lime)-1], ErrTruncated, "offset 0x20"},
		"LiME, cut header":  {append(bytes.Clone(lime), lime[:20]...), ErrTruncated, "header of a range"},
		"LiME, no magic":    {append(bytes.Clone(lime), make([]byte, 32)...), ErrFormat, "magic"},
		"LiME, reversed":    {with(lime, 8, 0, 0, 0, 1, 1), ErrFormat, "no machine"},
		"LiME, wraps":       {limeHead(limeMagic, 1, 0, ^uint64(0)), ErrFormat, "no machine"},
		"LiME, nothing":     {limeHead(limeMagic, 1, 1, 0), ErrFormat, "without memory"},
		"LiME, then AVML":   {append(bytes.Clone(lime), avml...), ErrFormat, "range of AVML"},
		"AVML version":      {with(avml, 4, 3), ErrFormat, "version 3"},
		"AVML, cut":         {avml[:len(avml)-20], ErrTruncated, "offset"},
		"AVML, its size":    {with(avml, len(avml)-8, 1), ErrFormat, "says"},
		"AVML, twice":       {append(bytes.Clone(avml), avml...), ErrFormat, "twice"},
		"AVML, frame type":  {with(avml, 42, 2), ErrFormat, "frame of type 0x2"},
		"AVML, then LiME":   {append(bytes.Clone(avml), lime...), ErrFormat, "range of LiME"},
		"AVML, short range": {with(avml, 16, 0xff, 0x1f, 0), ErrFormat, "more memory"},
	} {
		if m, err := Open(file(t, c.file)); m != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	for _, b := range [][]byte{lime, avml} {
		m := open(t, file(t, b[:len(b)/2]), AllowTruncated())
		same(t, m, 0x1000, data[:64<<10])
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	m := open(t, file(t, with(avml, 46, 0xff)))
	defer m.Close()
	if n, err := m.ReadPhys(make([]byte, 8), 0x1000); n != 0 || !errors.Is(err, mem.ErrUnreachable) || !strings.Contains(err.Error(), "check sum") {
		t.Errorf("a wrong check sum: %d, %v", n, err)
	}
	same(t, m, 0x1000+64<<10, data[64<<10:128<<10])
}

func FuzzLime(f *testing.F) {
	data := append(bytes.Repeat([]byte("abcd"), 2000), pattern(1, 1000)...)
	f.Add(makeLime(0x1000, data))
	f.Add(append(makeLime(0x1800, data[:100]), makeLime(0x1900, data[:100])...))
	f.Add(makeAVML(0x1000, data))
	f.Add(append(makeAVML(0x1000, data), makeAVML(0, data[:4096])...))
	f.Fuzz(fuzzOpen)
}
