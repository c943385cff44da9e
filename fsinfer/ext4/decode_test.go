package ext4

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"vmscope/event"
	"vmscope/mem"
)

// blocksOf answers reads from a map of blocks.
type blocksOf map[uint64][]byte

func (m blocksOf) ReadBlock(p []byte, b uint64) error {
	clear(p)
	copy(p, m[b])
	return nil
}

func TestParseSuperRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		off  int
		v    uint32
		want error
	}{
		{"block size", 0x18, 7, mem.ErrInconsistent},
		{"no blocks a group", 0x20, 0, mem.ErrInconsistent},
		{"too many blocks a group", 0x20, 8*4096 + 1, mem.ErrInconsistent},
		{"no inodes a group", 0x28, 0, mem.ErrInconsistent},
		{"too many inodes a group", 0x28, 8*4096 + 8, mem.ErrInconsistent},
		{"inodes that are not those of the groups", 0, 2048, mem.ErrInconsistent},
		{"no blocks", 4, 0, mem.ErrInconsistent},
		{"more blocks than bytes can be counted", 0x150, 1 << 24, mem.ErrInconsistent},
		{"first data block", 0x14, 1, mem.ErrInconsistent},
		{"first inode", 0x54, 0, mem.ErrInconsistent},
		{"inode size", 0x58, 8192, mem.ErrInconsistent},
		{"crooked inode size", 0x58, 200, mem.ErrInconsistent},
		{"descriptor size", 0xfc, 48 << 16, mem.ErrInconsistent},
		{"journal device", 0x60, IncompatJournalDev, ErrJournalDevice},
		{"compression", 0x60, IncompatCompression, errors.ErrUnsupported},
		{"dirdata", 0x60, IncompatDirData, errors.ErrUnsupported},
		{"unknown feature", 0x60, 1 << 31, errors.ErrUnsupported},
		{"revision", 0x4c, 2, errors.ErrUnsupported},
		{"magic", 0x38, 0xef54, ErrNoSuper},
	} {
		b := plainSuper(0, everything, 0)
		le.PutUint32(b[c.off:], c.v)
		if s, err := ParseSuper(b); !errors.Is(err, c.want) || s != nil {
			t.Errorf("%s: %v, %v, want %v", c.name, s, err, c.want)
		}
	}
	if _, err := ParseSuper(plainSuper(0, 0, 0)[:1000]); !errors.Is(err, ErrNoSuper) {
		t.Errorf("short: %v", err)
	}
	b := plainSuper(0, everything, ROCompatMetadataCsum)
	if !mustSuper(t, b).ChecksumOK {
		t.Error("a good checksum is wrong")
	}
	b[0x78] = 'x'
	if s := mustSuper(t, b); s.ChecksumOK || s.Label != "x" {
		t.Errorf("checksum of a changed superblock: %v, label %q", s.ChecksumOK, s.Label)
	}
}

// Where descriptors lie, by hand from Documentation/filesystems/ext4/blockgroup.rst.
func TestGroupBlock(t *testing.T) {
	plain := mustSuper(t, plainSuper(0, Incompat64Bit, ROCompatSparseSuper))
	plain.descPerBlock = 64
	meta := *plain
	meta.Incompat |= IncompatMetaBG
	later := meta
	later.FirstMetaBG = 2
	for _, c := range []struct {
		s     *Super
		group uint32
		block uint64
		off   int
	}{
		{plain, 0, 1, 0}, {plain, 63, 1, 63 * 64}, {plain, 64, 2, 0}, {plain, 130, 3, 128},
		{&meta, 0, 1, 0}, {&meta, 63, 1, 63 * 64}, {&meta, 64, 64 * 32768, 0}, {&meta, 128 + 5, 128 * 32768, 5 * 64},
		{&later, 70, 2, 6 * 64}, {&later, 129, 128 * 32768, 64},
	} {
		if b, off := c.s.GroupBlock(c.group); b != c.block || off != c.off {
			t.Errorf("group %d: block %d at %d, want %d at %d", c.group, b, off, c.block, c.off)
		}
	}
	copies := []uint32{}
	for g := range uint32(130) {
		if plain.HasSuper(g) {
			copies = append(copies, g)
		}
	}
	if want := []uint32{0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125}; !slices.Equal(copies, want) {
		t.Errorf("copies of the superblock in %v, want %v", copies, want)
	}
}

func TestTimes(t *testing.T) {
	s := mustSuper(t, plainSuper(0, everything, 0))
	raw := make([]byte, 256)
	le.PutUint16(raw[128:], 32)
	for _, c := range []struct {
		sec, extra uint32
		want       string
	}{ // the table of Documentation/filesystems/ext4/inodes.rst
		{0x80000000, 0, "1901-12-13T20:45:52Z"}, {0, 0, "1970-01-01T00:00:00Z"}, {0x7fffffff, 0, "2038-01-19T03:14:07Z"},
		{0x80000000, 1, "2038-01-19T03:14:08Z"}, {0x7fffffff, 1, "2174-02-25T09:42:23Z"}, {0x7fffffff, 2, "2310-04-04T16:10:39Z"},
		{0x7fffffff, 3, "2446-05-10T22:38:55Z"}, {5, 123456789<<2 | 1, "2106-02-07T06:28:21.123456789Z"},
	} {
		le.PutUint32(raw[16:], c.sec)
		le.PutUint32(raw[136:], c.extra)
		in, err := s.ParseInode(12, raw)
		if got := in.Mtime.Time().Format("2006-01-02T15:04:05.999999999Z"); err != nil || got != c.want {
			t.Errorf("%#x, %#x: %s, want %s, %v", c.sec, c.extra, got, c.want, err)
		}
	}
}

func TestParseInode(t *testing.T) {
	s := mustSuper(t, plainSuper(0, everything, ROCompatHugeFile))
	raw := make([]byte, 256)
	le.PutUint16(raw, sIFBLK|0o4660)
	le.PutUint16(raw[2:], 0x1234)
	le.PutUint16(raw[120:], 0x5678)
	le.PutUint16(raw[24:], 0x9abc)
	le.PutUint16(raw[122:], 0xdef0)
	le.PutUint32(raw[28:], 3)
	le.PutUint16(raw[116:], 1)
	le.PutUint32(raw[32:], FlagHugeFile)
	in, err := s.ParseInode(99, raw)
	if err != nil || in.UID != 0x56781234 || in.GID != 0xdef09abc || in.Blocks != (1<<32|3)*8 || in.Perm() != 0o4660 || in.Number != 99 {
		t.Errorf("%+v, %v", in, err)
	}
	if k, ok := in.Kind(); k != event.BlockDev || !ok {
		t.Errorf("kind %q, %v", k, ok)
	}
	for name, c := range map[string]func(){
		"size below zero": func() { le.PutUint16(raw, sIFREG); le.PutUint32(raw[108:], 1<<31) },
		"extra size":      func() { le.PutUint32(raw[108:], 0); le.PutUint16(raw[128:], 132) },
		"crooked extra":   func() { le.PutUint16(raw[128:], 30) },
	} {
		clear(raw)
		c()
		if in, err := s.ParseInode(12, raw); !errors.Is(err, mem.ErrInconsistent) || in.Size < 0 || in.InBody != nil && name != "size below zero" {
			t.Errorf("%s: %+v, %v", name, in, err)
		}
	}
	if _, err := s.ParseInode(12, raw[:255]); !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("short: %v", err)
	}
}

func TestRdev(t *testing.T) {
	in := Inode{Mode: sIFCHR}
	for _, c := range []struct {
		first, second uint32
		want          uint64
	}{
		{0x0103, 0, 1<<32 | 3}, {0, 0x00012003, 0x120<<32 | 0x03}, {0, 0x11110370, 0x103<<32 | 0x11170}, {0, 0, 0},
	} {
		le.PutUint32(in.Block[:], c.first)
		le.PutUint32(in.Block[4:], c.second)
		if got := in.Rdev(); got != c.want {
			t.Errorf("%#x, %#x: %#x, want %#x", c.first, c.second, got, c.want)
		}
	}
}

// Maps that lie are found out, and cost no more than what was written for them.
func TestLyingMaps(t *testing.T) {
	s := mustSuper(t, plainSuper(0, everything, 0))
	pointers := func(to ...uint32) []byte {
		b := make([]byte, s.BlockSize)
		for i := range s.BlockSize / 4 {
			le.PutUint32(b[4*i:], to[i%len(to)])
		}
		return b
	}
	indexes := func(depth int, first, step uint64, to ...uint64) []byte {
		b := extentNode(s, depth)
		le.PutUint16(b[2:], uint16(len(to)))
		for i, block := range to {
			p := b[extentSize*(i+1):]
			le.PutUint32(p, uint32(first+step*uint64(i)))
			le.PutUint32(p[4:], uint32(block))
		}
		return b
	}
	same := func(n int, b uint64) (list []uint64) {
		for range n {
			list = append(list, b)
		}
		return list
	}
	full := extentInode(4)
	le.PutUint16(full[44:], 5)
	le.PutUint16(full[42:], 5)
	deep := indexInode(6, 500)
	for _, c := range []struct {
		name   string
		raw    []byte
		blocks blocksOf
		reads  int // at most
	}{
		{"beyond the volume", extentInode(4, Extent{0, 99999, 2, false}), nil, 0},
		{"superblock's block", extentInode(4, Extent{0, 0, 2, false}), nil, 0},
		{"no length", extentInode(4, Extent{0, 500, 0, false}), nil, 0},
		{"overlap", extentInode(4, Extent{0, 500, 5, false}, Extent{4, 600, 5, false}), nil, 0},
		{"backwards", extentInode(4, Extent{10, 500, 5, false}, Extent{4, 600, 5, false}), nil, 0},
		{"past 2^32", extentInode(4, Extent{1<<32 - 1, 500, 5, false}), nil, 0},
		{"more than the inode holds", full, nil, 0},
		{"too deep", deep, nil, 0},
		{"itself", indexInode(5, 500), blocksOf{500: indexes(5, 0, 1, 500)}, 1},
		{"depths that do not sink", indexInode(2, 500), blocksOf{500: indexes(2, 0, 1, 501)}, 1},
		{"one leaf again and again", indexInode(1, 500, 500), blocksOf{500: extentNode(s, 0, Extent{0, 600, 3, false})}, 2},
		{"one empty leaf again and again", indexInode(2, 500), blocksOf{500: indexes(1, 0, 1, same(300, 501)...), 501: extentNode(s, 0)}, maxEmptyLeaves + 2},
		{"empty index", indexInode(2, 500), blocksOf{500: extentNode(s, 1)}, 1},
		{"entries out of their range", indexInode(1, 500, 501), blocksOf{500: extentNode(s, 0, Extent{999, 600, 3, false})}, 1},
		{"index beyond the volume", indexInode(1, 1<<31), nil, 0},
		{"no node", indexInode(1, 500), nil, 1},
		{"block maps: beyond the volume", mapInode([]uint32{1 << 31}), nil, 0},
		{"block maps: all the same block", mapInode(nil, 500, 500, 500), blocksOf{500: pointers(500)}, 99},
		{"block maps: nothing again and again", mapInode(nil, 0, 0, 500), blocksOf{500: pointers(501), 501: pointers(502), 502: nil}, maxEmptyLeaves + 5},
		{"block maps: indirect beyond the volume", mapInode(nil, 100000), nil, 0},
	} {
		in, err := s.ParseInode(12, append(c.raw, make([]byte, 256)...))
		if err != nil {
			t.Fatal(err)
		}
		r := &counting{BlockReader: c.blocks}
		if err := s.Extents(r, &in, func(Extent) bool { return true }, nil); !errors.Is(err, mem.ErrInconsistent) || r.n > c.reads {
			t.Errorf("%s: %v after %d reads, want at most %d", c.name, err, r.n, c.reads)
		}
	}
}

type counting struct {
	BlockReader
	n int
}

func (c *counting) ReadBlock(p []byte, b uint64) error {
	c.n++
	return c.BlockReader.ReadBlock(p, b)
}

// A walk ends where a callback says so, be it in the middle of a block map's range.
func TestExtentsEnd(t *testing.T) {
	s := mustSuper(t, plainSuper(0, everything, 0))
	indirect := make([]byte, s.BlockSize)
	for i := range 10 {
		le.PutUint32(indirect[4*i:], uint32(700+i))
	}
	blocks := blocksOf{500: extentNode(s, 0, Extent{0, 600, 3, false}, Extent{5, 700, 3, false}), 501: indirect}
	for name, raw := range map[string][]byte{
		"tree": indexInode(1, 500), "inode": extentInode(4, Extent{0, 600, 3, false}, Extent{5, 700, 3, false}),
		"map": mapInode([]uint32{600, 601, 602, 0, 0, 700}, 501),
	} {
		in, err := s.ParseInode(12, append(raw, make([]byte, 256)...))
		if err != nil {
			t.Fatal(err)
		}
		var all []Extent
		if err := s.Extents(blocks, &in, func(e Extent) bool { all = append(all, e); return true }, nil); err != nil || len(all) < 2 {
			t.Errorf("%s: %v, %v", name, all, err)
		}
		n := 0
		if err := s.Extents(blocks, &in, func(Extent) bool { n++; return false }, nil); err != nil || n != 1 {
			t.Errorf("%s: ended after %d, %v", name, n, err)
		}
		if err := s.Extents(blocks, &in, nil, nil); err != nil {
			t.Errorf("%s: nobody wants it: %v", name, err)
		}
		metas := 0
		if err := s.Extents(blocks, &in, nil, func(uint64) bool { metas++; return false }); err != nil || name != "inode" && metas != 1 {
			t.Errorf("%s: ended after %d blocks of the map, %v", name, metas, err)
		}
	}
}

func TestDirents(t *testing.T) {
	s := mustSuper(t, plainSuper(0, everything, 0))
	tail := func(b []byte) []byte { // last entry made room for a checksum
		le.PutUint16(b[12+4:], uint16(len(b)-12-12))
		end := b[len(b)-12:]
		clear(end)
		le.PutUint16(end[4:], 12)
		end[7] = tailType
		return b
	}
	empty := make([]byte, 4096)
	le.PutUint16(empty[4:], 4096)
	unused := dirBlock(4096, "gone", "here")
	le.PutUint32(unused, 0)
	short := dirBlock(4096, "a", "bb")
	le.PutUint16(short[4:], 4)
	crooked := dirBlock(4096, "a", "bb")
	le.PutUint16(crooked[4:], 13)
	long := dirBlock(4096, "a", "bb")
	long[12+6] = 255
	le.PutUint16(long[12+4:], 16)
	beyond := dirBlock(4096, "a", "bb")
	le.PutUint16(beyond[12+4:], 4096)
	for _, c := range []struct {
		name  string
		block []byte
		want  string
		bad   bool
	}{
		{"names", dirBlock(4096, "a", "bb", "ccc"), "a bb ccc", false},
		{"checksum", tail(dirBlock(4096, "a", "bb")), "a bb", false},
		{"index", empty, "", false},
		{"unused", unused, "here", false},
		{"slash", dirBlock(4096, "a", "b/c", "d"), "a d", true},
		{"NUL", dirBlock(4096, "a", "b\x00c", "d"), "a d", true},
		{"no name", dirBlock(4096, "a", "", "d"), "a", true},
		{"entry too short", short, "", true},
		{"crooked entry", crooked, "", true},
		{"name longer than its entry", long, "a", true},
		{"entry beyond the block", beyond, "a", true},
		{"zeros", make([]byte, 4096), "", true},
	} {
		var names []string
		err := s.Dirents(c.block, func(d Dirent) bool {
			names = append(names, string(d.Name))
			return true
		})
		if got := strings.Join(names, " "); got != c.want || errors.Is(err, mem.ErrInconsistent) != c.bad {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
	var raw []byte
	if err := s.EncryptedDirents(dirBlock(4096, "b/\x00"), func(d Dirent) bool { raw = d.Name; return true }); err != nil || !bytes.Equal(raw, []byte("b/\x00")) {
		t.Errorf("ciphertext: %q, %v", raw, err)
	}
	for code, want := range map[int]int{0: 1 << 16, 1<<16 - 1: 1 << 16, 12: 12, 1<<16 - 4: 1<<16 - 4, 13: 12 | 1<<16} {
		if got := longRecLen(code); got != want {
			t.Errorf("length %#x of an entry in 64 KiB: %d, want %d", code, got, want)
		}
	}
}

func TestACL(t *testing.T) {
	// rw- for the owner, user 1000 and the mask, r-- for the rest; as setfacl -m u:1000:rw and getfattr told.
	disk := []byte{1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 6, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 16, 0, 6, 0, 32, 0, 4, 0}
	want := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 6, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255}
	if got := aclValue(disk); !bytes.Equal(got, want) {
		t.Errorf("% x, want % x", got, want)
	}
	for _, odd := range [][]byte{nil, {2, 0, 0, 0}, disk[:14], disk[:6]} {
		if got := aclValue(odd); !bytes.Equal(got, odd) {
			t.Errorf("% x became % x", odd, got)
		}
	}
}
