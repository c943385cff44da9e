package ext4

import (
	"errors"
	"fmt"
	"testing"

	"vmscope/event"
	"vmscope/mem"
)

// plainSuper is the superblock of a file system of 4 KiB blocks, with what features say.
func plainSuper(compat, incompat, roCompat uint32) []byte {
	b := make([]byte, SuperSize)
	put := func(off int, v uint32) { le.PutUint32(b[off:], v) }
	put(0, 4*2048)        // inodes
	put(4, 100000)        // blocks
	put(0x18, 2)          // 4 KiB
	put(0x1c, 2)          //
	put(0x20, 32768)      // blocks a group
	put(0x24, 32768)      //
	put(0x28, 2048)       // inodes a group
	put(0x38, superMagic) //
	put(0x4c, 1)          // revision
	put(0x54, 11)         // first inode
	put(0x58, 256)        // inode size
	put(0x5c, compat)
	put(0x60, incompat)
	put(0x64, roCompat)
	b[0x175] = 1
	le.PutUint16(b[0xfe:], 64)
	put(0x3fc, crc32c(^uint32(0), b[:0x3fc]))
	return b
}

func mustSuper(tb testing.TB, b []byte) *Super {
	tb.Helper()
	s, err := ParseSuper(b)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

const everything = IncompatFiletype | IncompatExtents | Incompat64Bit | IncompatFlexBG | IncompatEAInode | IncompatLargeDir | IncompatInlineData

// What ParseSuper lets pass leaves no arithmetic that overflows, and places inside the volume only.
func FuzzParseSuper(f *testing.F) {
	f.Add(plainSuper(0, everything, ROCompatMetadataCsum))
	f.Add(plainSuper(0, IncompatMetaBG, 0))
	f.Add(plainSuper(0, 0, ROCompatBigalloc|ROCompatSparseSuper|ROCompatGdtCsum))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSuper(b)
		if (s == nil) != (err != nil) {
			t.Fatalf("%v beside %v", s, err)
		}
		if err != nil {
			if !errors.Is(err, ErrNoSuper) && !errors.Is(err, ErrJournalDevice) && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, mem.ErrInconsistent) {
				t.Fatalf("error without a class: %v", err)
			}
			return
		}
		if s.Groups == 0 || s.GroupStart(s.Groups-1) >= s.Blocks || s.GroupStart(s.Groups-1)+uint64(s.BlocksPerGroup) < s.Blocks {
			t.Fatalf("%d groups of %d do not fit %d blocks", s.Groups, s.BlocksPerGroup, s.Blocks)
		}
		if int64(s.Blocks*uint64(s.BlockSize)) <= 0 || s.InodeSize > s.BlockSize {
			t.Fatalf("%d blocks of %d, inodes of %d", s.Blocks, s.BlockSize, s.InodeSize)
		}
		for _, ino := range []uint32{1, 2, s.Inodes, s.Inodes / 2} {
			g, index := s.InodeGroup(max(ino, 1))
			if g >= s.Groups || index >= s.InodesPerGroup || uint64(g)*uint64(s.InodesPerGroup)+uint64(index)+1 != uint64(max(ino, 1)) {
				t.Fatalf("inode %d in group %d of %d, there %d", ino, g, s.Groups, index)
			}
			if _, off := s.GroupBlock(g); off+s.DescSize > s.BlockSize {
				t.Fatalf("descriptor at %d", off)
			}
			block, off, err := s.InodePlace(Group{InodeTable: s.Blocks / 2}, index)
			if err == nil && (block >= s.Blocks || off+s.InodeSize > s.BlockSize) {
				t.Fatalf("inode %d in block %d of %d at %d", ino, block, s.Blocks, off)
			}
		}
	})
}

// scripted answers each read of a block with the next of the input's, and counts.
type scripted struct {
	blocks []byte
	reads  int
}

var errScriptEnds = errors.New("script ends")

func (s *scripted) ReadBlock(p []byte, _ uint64) error {
	s.reads++
	if len(s.blocks) == 0 {
		return errScriptEnds
	}
	clear(p)
	s.blocks = s.blocks[copy(p, s.blocks):]
	return nil
}

// fuzzSupers are the file systems that a byte of the input chooses among.
func fuzzSupers(tb testing.TB) []*Super {
	small := plainSuper(0, IncompatFiletype|IncompatInlineData|IncompatExtents|IncompatEAInode, ROCompatMetadataCsum|ROCompatHugeFile)
	le.PutUint32(small[0x14:], 1)
	le.PutUint32(small[0x18:], 0)
	le.PutUint32(small[0x20:], 8192)
	le.PutUint32(small[0:], 13*2048)
	large := plainSuper(0, everything|IncompatCasefold|IncompatEncrypt, ROCompatMetadataCsum)
	le.PutUint32(large[0x18:], 6)
	return []*Super{
		mustSuper(tb, plainSuper(0, everything, 0)), mustSuper(tb, plainSuper(0, 0, 0)), mustSuper(tb, small), mustSuper(tb, large),
	}
}

// A map gives ranges that are on the volume, in order and apart, in steps that the input bounds.
func FuzzExtents(f *testing.F) {
	supers := fuzzSupers(f)
	f.Add(uint8(0), extentInode(4, Extent{0, 100, 5, false}, Extent{9, 200, 1, true}), []byte{})
	f.Add(uint8(0), indexInode(1, 777), extentNode(supers[0], 0, Extent{0, 100, 5, false}))
	f.Add(uint8(1), mapInode([]uint32{5, 6, 7, 0, 9}, 50, 51, 52), []byte{11, 0, 0, 0, 12, 0, 0, 0})
	f.Add(uint8(2), mapInode(nil, 0, 51, 52), []byte{11, 0, 0, 0, 12, 0, 0, 0})
	f.Fuzz(func(t *testing.T, which uint8, raw, script []byte) {
		s := supers[int(which)%len(supers)]
		raw = append(raw, make([]byte, s.InodeSize)...)
		in, err := s.ParseInode(12, raw)
		if in.Size < 0 || err != nil && !errors.Is(err, mem.ErrInconsistent) {
			t.Fatalf("size %d, %v", in.Size, err)
		}
		r := &scripted{blocks: script}
		var end, sum uint64
		metas, calls := 0, 0
		err = s.Extents(r, &in, func(e Extent) bool {
			if e.Len == 0 || e.Logical < end || e.Logical+uint64(e.Len) > 1<<32 || e.Physical == 0 || e.Physical+uint64(e.Len) > s.Blocks {
				t.Fatalf("%+v behind %d", e, end)
			}
			end = e.Logical + uint64(e.Len)
			sum += uint64(e.Len)
			calls++
			return calls < 1<<20
		}, func(b uint64) bool {
			metas++
			return b > 0 && b < s.Blocks
		})
		if metas < r.reads || r.reads > len(script)/s.BlockSize+2 || sum > s.Blocks {
			t.Fatalf("%d blocks of the map, %d reads, %d blocks: %v", metas, r.reads, sum, err)
		}
		classed(t, err)
		// From any block on, the rest of the ranges is the same.
		r.blocks = script
		var rest []Extent
		if err == nil && len(script) == 0 && s.extentsFrom(r, &in, end/2, func(e Extent) bool {
			rest = append(rest, e)
			return true
		}, nil) == nil && end > 0 && (len(rest) == 0 || rest[len(rest)-1].Logical+uint64(rest[len(rest)-1].Len) != end) {
			t.Fatalf("from %d on: %v, want up to %d", end/2, rest, end)
		}
		if _, ok := in.Kind(); ok && in.Attr().Kind == event.Lnk {
			r.blocks = script
			if target, err := s.Target(r, &in); len(target) > 2*maxTarget {
				t.Fatalf("target of %d bytes, %v", len(target), err)
			}
		}
	})
}

// classed fails for an error that is of no class.
func classed(t *testing.T, err error) {
	t.Helper()
	sum := (*ChecksumError)(nil)
	if err != nil && !errors.Is(err, mem.ErrInconsistent) && !errors.Is(err, errScriptEnds) && !errors.As(err, &sum) && !errors.Is(err, ErrNoInode) {
		t.Fatalf("error without a class: %v", err)
	}
}

// Entries are inside of their block, in its order, and none is made up.
func FuzzDirents(f *testing.F) {
	supers := fuzzSupers(f)
	f.Add(uint8(0), true, dirBlock(4096, "a", "bb", "a longer name"))
	f.Add(uint8(3), false, dirBlock(65536, "x/y", "bb"))
	f.Add(uint8(2), true, dirBlock(1024, "a/b", "ok"))
	f.Fuzz(func(t *testing.T, which uint8, plain bool, b []byte) {
		s := supers[int(which)%len(supers)]
		b = append(b, make([]byte, s.BlockSize)...)[:s.BlockSize]
		last, n := 0, 0
		err := s.dirents(b, s.BlockSize, plain, func(d Dirent) bool {
			// No more than the name is reachable through it.
			if d.Ino == 0 || len(d.Name) == 0 || len(d.Name) > 255 || cap(d.Name) != len(d.Name) || plain && !validName(d.Name) {
				t.Fatalf("%+v", d)
			}
			n++
			last += direntHeader + len(d.Name)
			return true
		})
		if n > s.BlockSize/minRecLen || last > s.BlockSize {
			t.Fatalf("%d entries of %d bytes in %d", n, last, s.BlockSize)
		}
		classed(t, err)
		in := Inode{Number: 2, Mode: sIFDIR}
		s.DirBlockOK(&in, b)
	})
}

// What lies in an inode stays in it.
func FuzzInline(f *testing.F) {
	supers := fuzzSupers(f)
	dir := make([]byte, 256)
	le.PutUint16(dir, sIFDIR|0o755)
	le.PutUint32(dir[32:], FlagInlineData)
	le.PutUint32(dir[4:], 120)
	le.PutUint32(dir[40:], 2)
	copy(dir[44:], dirBlock(56, "name", "second"))
	le.PutUint16(dir[128:], 32)
	copy(dir[160:], xattrBody(7, "data", dirBlock(60, "third")))
	f.Add(uint8(0), dir)
	f.Fuzz(func(t *testing.T, which uint8, raw []byte) {
		s := supers[int(which)%len(supers)]
		raw = append(raw, make([]byte, s.InodeSize)...)
		in, _ := s.ParseInode(12, raw)
		n := 0
		err := s.InlineDirents(&in, func(d Dirent) bool {
			if n++; len(d.Name) == 0 || n > s.InodeSize {
				t.Fatalf("entry %d: %+v", n, d)
			}
			return true
		})
		classed(t, err)
		b, err := s.InlineData(&in)
		if len(b) > s.InodeSize || err == nil && int64(len(b)) != in.Size {
			t.Fatalf("%d bytes of %d: %v", len(b), in.Size, err)
		}
		classed(t, err)
	})
}

// Attributes are no larger than what they lie in, but for those in inodes of their own.
func FuzzXattrs(f *testing.F) {
	supers := fuzzSupers(f)
	raw := make([]byte, 256)
	le.PutUint16(raw, sIFREG)
	le.PutUint16(raw[128:], 32)
	le.PutUint32(raw[104:], 500)
	copy(raw[160:], xattrBody(1, "name", []byte("value")))
	block := make([]byte, 4096)
	le.PutUint32(block, xattrMagic)
	le.PutUint32(block[8:], 1)
	copy(block[32:], xattrBody(2, "", []byte{1, 0, 0, 0, 1, 0, 7, 0})[4:])
	f.Add(uint8(0), raw, block)
	f.Fuzz(func(t *testing.T, which uint8, raw, script []byte) {
		s := supers[int(which)%len(supers)]
		raw = append(raw, make([]byte, s.InodeSize)...)
		in, _ := s.ParseInode(12, raw)
		r := &scripted{blocks: script}
		list, err := s.Xattrs(r, &in)
		size := 0
		for _, x := range list {
			if x.Name == "" {
				t.Fatal("an attribute without a name")
			}
			if size += len(x.Value); x.Inode == 0 && len(x.Value) > 2*s.BlockSize {
				t.Fatalf("%q has %d bytes", x.Name, len(x.Value))
			}
		}
		if size > maxXattrTotal+2*s.BlockSize*s.BlockSize/xattrEntrySize {
			t.Fatalf("%d bytes in all", size)
		}
		classed(t, err)
	})
}

// Edits to the ranges of a file are those that a map of each block would hold.
func FuzzRanges(f *testing.F) {
	supers := fuzzSupers(f)
	f.Add([]byte{0, 10, 1, 5, 3, 0, 9, 20, 2})
	f.Add([]byte{3, 1, 1, 1, 9, 2, 0, 30, 0, 8, 4, 5})
	f.Fuzz(func(t *testing.T, script []byte) {
		s := supers[0]
		want := map[uint64]Extent{}
		set := func(e Extent) {
			for i := range uint64(e.Len) {
				if e.Physical == 0 {
					delete(want, e.Logical+i)
				} else {
					want[e.Logical+i] = Extent{e.Logical + i, e.Physical + i, 1, e.Unwritten}
				}
			}
		}
		base := []Extent{{2, 500, 7, false}, {9, 900, 4, true}, {20, 700, 12, false}, {60, 60, 1, false}}
		for _, e := range base {
			set(e)
		}
		var edits []Extent
		for i := 0; i+3 <= len(script) && len(edits) < 300; i += 3 {
			e := Extent{Logical: uint64(script[i] % 80), Len: uint32(script[i+1]%16 + 1), Unwritten: script[i+2]&1 != 0}
			if script[i+2]%3 != 0 {
				e.Physical = 1000 + uint64(script[i+2])*16
			}
			edits = append(edits, e)
			set(e)
		}
		in, err := s.ParseInode(12, append(extentInode(4, base...), make([]byte, 256)...))
		if err != nil {
			t.Fatal(err)
		}
		v := &Volume{sb: s, fast: &fastLook{ranges: map[uint32][]Extent{12: paint(edits)}}}
		for _, start := range []uint64{0, 5, 40} {
			got, end := map[uint64]Extent{}, uint64(0)
			if err := v.extentsFrom(&in, start, func(e Extent) bool {
				if e.Logical < end || e.Len == 0 {
					t.Fatalf("%+v behind %d", e, end)
				}
				end = e.Logical + uint64(e.Len)
				for i := range uint64(e.Len) {
					got[e.Logical+i] = Extent{e.Logical + i, e.Physical + i, 1, e.Unwritten}
				}
				return true
			}, nil); err != nil {
				t.Fatal(err)
			}
			for b := start; b < 100; b++ {
				if got[b] != want[b] {
					t.Fatalf("from %d on: block %d is %+v, want %+v", start, b, got[b], want[b])
				}
			}
		}
	})
}

// The rest builds what the targets begin with.

func extentNode(s *Super, depth int, list ...Extent) []byte {
	n := s.BlockSize
	b := make([]byte, n)
	le.PutUint16(b, extentMagic)
	le.PutUint16(b[2:], uint16(len(list)))
	le.PutUint16(b[4:], uint16(n/extentSize-1))
	le.PutUint16(b[6:], uint16(depth))
	putExtents(b, list)
	return b
}

func putExtents(b []byte, list []Extent) {
	for i, e := range list {
		p := b[extentSize*(i+1):]
		le.PutUint32(p, uint32(e.Logical))
		n := e.Len
		if e.Unwritten {
			n += maxInitLen
		}
		le.PutUint16(p[4:], uint16(n))
		le.PutUint16(p[6:], uint16(e.Physical>>32))
		le.PutUint32(p[8:], uint32(e.Physical))
	}
}

// extentInode is the raw inode of a file with a tree of no depth.
func extentInode(most int, list ...Extent) []byte {
	raw := make([]byte, 160)
	le.PutUint16(raw, sIFREG|0o644)
	le.PutUint16(raw[26:], 1)
	le.PutUint32(raw[4:], 1<<20)
	le.PutUint32(raw[32:], FlagExtents)
	le.PutUint16(raw[40:], extentMagic)
	le.PutUint16(raw[42:], uint16(len(list)))
	le.PutUint16(raw[44:], uint16(most))
	putExtents(raw[40:], list)
	le.PutUint16(raw[128:], 32)
	return raw
}

// indexInode is one with a tree of some depth, whose first node is in block.
func indexInode(depth int, blocks ...uint32) []byte {
	raw := extentInode(4)
	le.PutUint16(raw[42:], uint16(len(blocks)))
	le.PutUint16(raw[46:], uint16(depth))
	for i, b := range blocks {
		le.PutUint32(raw[52+extentSize*i:], uint32(i)*1000)
		le.PutUint32(raw[56+extentSize*i:], b)
	}
	return raw
}

// mapInode is one with a block map.
func mapInode(direct []uint32, indirect ...uint32) []byte {
	raw := make([]byte, 160)
	le.PutUint16(raw, sIFREG|0o644)
	le.PutUint16(raw[26:], 1)
	le.PutUint32(raw[4:], 1<<20)
	for i, b := range direct {
		le.PutUint32(raw[40+4*i:], b)
	}
	for i, b := range indirect {
		le.PutUint32(raw[40+4*(directBlocks+i):], b)
	}
	return raw
}

// dirBlock is a block with entries for names, which have the inodes 100 and up.
func dirBlock(size int, names ...string) []byte {
	b := make([]byte, size)
	off := 0
	for i, name := range names {
		n := (direntHeader + len(name) + 3) &^ 3
		if i == len(names)-1 {
			n = size - off
		}
		le.PutUint32(b[off:], uint32(100+i))
		code := n
		if n == 1<<16 {
			code = 1<<16 - 1
		}
		le.PutUint16(b[off+4:], uint16(code&^3|code>>16))
		b[off+6], b[off+7] = byte(len(name)), FileTypeFile
		copy(b[off+8:], name)
		off += n
	}
	return b
}

// xattrBody is what lies behind an inode's fields where it has one attribute.
func xattrBody(index uint8, name string, value []byte) []byte {
	b := make([]byte, 96)
	le.PutUint32(b, xattrMagic)
	e := b[4:]
	e[0], e[1] = byte(len(name)), index
	le.PutUint16(e[2:], 32)
	le.PutUint32(e[8:], uint32(len(value)))
	copy(e[16:], name)
	copy(e[32:], value)
	return b
}

func ExampleEncryptedName() {
	fmt.Println(EncryptedName([]byte{0xff, 0, 1, 2}))
	// Output: _wABAg
}
