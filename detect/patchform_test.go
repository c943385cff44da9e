package detect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"vmscope/kernel/linux"
	"vmscope/mem"
)

func TestForm(t *testing.T) {
	const at, good = mem.VA(0xffffffff81000000), mem.VA(0xffffffff81000100)
	branch := func(to mem.VA, op ...byte) []byte {
		n := mem.VA(len(op) + 4)
		return append(binary.LittleEndian.AppendUint32(op, uint32(to-at-n)), 0x90)
	}
	const calls = mem.VA(0xffffffff82000000) // a key that has something to call
	toGood := func(s linux.PatchSite, to mem.VA) bool { return to == good || to == 0 && s.Key != calls }
	cases := []struct {
		name  string
		kind  linux.PatchKind
		b     []byte
		bytes int
	}{
		{"label off", linux.JumpLabel, []byte{0x0f, 0x1f, 0x44, 0, 0, 0x90}, 5},
		{"short label off", linux.JumpLabel, []byte{0x66, 0x90, 1, 2, 3, 4}, 2},
		{"label on", linux.JumpLabel, branch(good, opJump), 5},
		{"label led astray", linux.JumpLabel, branch(good+1, opJump), 0},
		{"label that calls", linux.JumpLabel, branch(good, opCall), 0},
		{"short label led astray", linux.JumpLabel, []byte{opShort, 0x10, 0, 0, 0, 0}, 0},
		{"label half written", linux.JumpLabel, []byte{opInt3, 0x1f, 0x44, 0, 0, 0x90}, 0},
		{"cut off", linux.JumpLabel, branch(good, opJump)[:3], 0},
		{"nothing", linux.JumpLabel, nil, 0},
		{"ftrace off", linux.FtraceSite, []byte{0x66, 0x66, 0x66, 0x66, 0x90, 0}, 5},
		{"ftrace on", linux.FtraceSite, branch(good, opCall), 5},
		{"ftrace that jumps", linux.FtraceSite, branch(good, opJump), 5},
		{"ftrace led astray", linux.FtraceSite, branch(good+1, opCall), 0},
		{"static call", linux.StaticCall, branch(good, opCall), 5},
		{"static tail call", linux.StaticCall, branch(good, opJump), 5},
		{"conditional static tail call", linux.StaticCall, branch(good, 0x0f, 0x84), 6},
		{"conditional, led astray", linux.StaticCall, branch(good+8, 0x0f, 0x84), 0},
		{"static call of nothing", linux.StaticCall, []byte{0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0x90}, 5},
		{"return with more", linux.StaticCall, []byte{0xc3, 0xcc, 0xcc, 0xcc, 0x90, 0x90}, 0},
		{"kprobe", linux.Kprobe, []byte{opInt3, 1, 2, 3, 4, 5}, 1},
		{"optimized kprobe", linux.Kprobe, branch(good, opJump), 5},
		{"kprobe led astray", linux.Kprobe, branch(good+1, opJump), 0},
		{"lock", linux.LockPrefix, []byte{opLock}, 1},
		{"no lock", linux.LockPrefix, []byte{opDS}, 1},
		{"other prefix", linux.LockPrefix, []byte{0x65}, 0},
	}
	for _, c := range cases {
		if got := form(linux.PatchSite{At: at, Kind: c.kind}, c.b, toGood); got != c.bytes {
			t.Errorf("%s: % x has %d bytes in a valid form, want %d", c.name, c.b, got, c.bytes)
		}
	}
	for _, b := range noCalls {
		if got := form(linux.PatchSite{At: at, Kind: linux.StaticCall, Key: calls}, b, toGood); got != 0 {
			t.Errorf("% x, where something is to be called, has %d bytes in a valid form", b, got)
		}
	}
}

func TestLeap(t *testing.T) {
	const at = mem.VA(0xffffffff81000000)
	far := mem.VA(0xffffffffc0000000)
	load := func(va mem.VA) (mem.VA, error) {
		if va == at+6+0x10 {
			return far, nil
		}
		return 0, errors.New("nothing there")
	}
	abs := binary.LittleEndian.AppendUint64([]byte{0x48, 0xb8}, uint64(far))
	r11 := binary.LittleEndian.AppendUint64([]byte{0x49, 0xbb}, uint64(far))
	cases := []struct {
		name string
		b    []byte
		to   mem.VA // 0: goes nowhere
	}{
		{"jmp", []byte{0xe9, 0xfb, 0xff, 0xff, 0x3e}, 0xffffffff81000000 + 0x3f000000},
		{"call back", []byte{0xe8, 0xfb, 0xff, 0xff, 0xff}, at},
		{"jmp [rip]", []byte{0xff, 0x25, 0x10, 0, 0, 0}, far},
		{"jmp [rip] where nothing is", []byte{0xff, 0x25, 0x11, 0, 0, 0}, 0},
		{"push; ret", []byte{0x68, 0, 0, 0, 0xc0, 0xc3}, far},
		{"push alone", []byte{0x68, 0, 0, 0, 0xc0, 0x90}, 0},
		{"mov rax; jmp rax", append(abs[:10:10], 0xff, 0xe0, 0x90), far},
		{"mov rax; push; ret", append(abs[:10:10], 0x50, 0xc3, 0x90), far},
		{"mov r11; jmp r11", append(r11[:10:10], 0x41, 0xff, 0xe3), far},
		{"mov rax alone", append(abs[:10:10], 0x90, 0x90, 0x90), 0},
		{"push rbp", []byte{0x55, 0x48, 0x89, 0xe5, 0x41, 0x57}, 0},
		{"cut off", []byte{0xe9, 0, 0}, 0},
		{"nothing", nil, 0},
	}
	for _, c := range cases {
		to, ok := leap(at, c.b, load)
		if ok != (c.to != 0) || ok && to != c.to {
			t.Errorf("%s: % x leads to %#x, %v, want %#x", c.name, c.b, uint64(to), ok, uint64(c.to))
		}
	}
}

func TestStrays(t *testing.T) {
	was := make([]byte, 2*mem.PageSize)
	for _, c := range []struct {
		name    string
		changed []int
		valid   []covered
		want    []covered
	}{
		{"nothing", nil, nil, nil},
		{"one byte", []int{7}, nil, []covered{{7, 8}}},
		{"explained", []int{7, 8, 9}, []covered{{6, 11}}, nil},
		{"next to what is explained", []int{5, 6, 10, 11}, []covered{{6, 11}}, []covered{{5, 12}}},
		{"before and behind, far apart", []int{5, 6, 40, 41}, []covered{{6, 11}, {41, 42}}, []covered{{5, 6}, {40, 41}}},
		{"a short place at the start of a long one", []int{100, 104}, []covered{{100, 101}, {100, 105}}, nil},
		{"a long place and then a short one", []int{100, 104}, []covered{{100, 105}, {100, 101}}, nil},
		{"across pages", []int{mem.PageSize - 1, mem.PageSize}, nil, []covered{{mem.PageSize - 1, mem.PageSize + 1}}},
		{"near each other", []int{10, 20}, nil, []covered{{10, 21}}},
		{"at the end", []int{2*mem.PageSize - 1}, []covered{{0, 5}}, []covered{{2*mem.PageSize - 1, 2 * mem.PageSize}}},
	} {
		m := &run{was: was, now: make(map[int][]byte)}
		for _, i := range c.changed {
			page := i / mem.PageSize
			if m.now[page] == nil {
				m.now[page] = make([]byte, mem.PageSize)
			}
			m.now[page][i%mem.PageSize] = 1
		}
		var got []covered
		strays(m, c.valid, func(from, to int) { got = append(got, covered{from, to}) })
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestThunks(t *testing.T) {
	page := bytes.Repeat([]byte{opInt3}, mem.PageSize)
	if !thunks(page) {
		t.Error("traps alone")
	}
	copy(page[0x20:], []byte{0xff, 0xe0, opInt3})
	copy(page[0x60:], []byte{0x41, 0xff, 0xe3, opInt3})
	if !thunks(page) {
		t.Error("jmp rax, jmp r11")
	}
	for _, b := range [][]byte{{0x90}, {0xff, 0xd0, opInt3}, {0xff, 0xe0, 0x90}, {0xff, 0x20, opInt3}, {0xe9, 0, 0, 0, 0}, {0xc3}, {0}} {
		if bad := append(bytes.Clone(page[:0x80]), b...); thunks(bad) {
			t.Errorf("% x", b)
		}
	}
	if thunks([]byte{0xff, 0xe0}) {
		t.Error("cut off")
	}
}
