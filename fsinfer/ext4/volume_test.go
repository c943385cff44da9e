package ext4

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"vmscope/block"
	"vmscope/mem"
)

// pathTree is a volume to find ways in.
func pathTree(tb testing.TB) *Volume {
	tb.Helper()
	dir := tb.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "etc/deep/er"), 0o755); err != nil {
		tb.Fatal(err)
	}
	for _, name := range []string{"etc/passwd", "etc/deep/file", "top"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"loop": "loop2", "loop2": "loop", "abs": "/etc/passwd", "up": "../../../../etc/passwd", "etc/deep/rel": "../passwd",
		"dir": "etc/deep", "etc/deep/back": "../../dir", "dangling": "nowhere/at/all", "slash": "etc/", "self": ".", "host": "/proc/self/exe",
		"c0": "top",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			tb.Fatal(err)
		}
	}
	for i := range 45 {
		if err := os.Symlink(fmt.Sprintf("c%d", i), filepath.Join(dir, fmt.Sprintf("c%d", i+1))); err != nil {
			tb.Fatal(err)
		}
	}
	return look(tb, mkfs(tb, dir, "8M", "-t", "ext4"))
}

func TestPaths(t *testing.T) {
	v := pathTree(t)
	for _, c := range []struct {
		path, content string
		err           error
	}{
		{"/etc/passwd", "etc/passwd", nil}, {"etc/passwd", "etc/passwd", nil}, {"//etc///passwd", "etc/passwd", nil},
		{"/etc/./deep/../passwd", "etc/passwd", nil}, {"/../../top", "top", nil}, {"/abs", "etc/passwd", nil}, {"/up", "etc/passwd", nil},
		{"/etc/deep/rel", "etc/passwd", nil}, {"/dir/rel", "etc/passwd", nil}, {"/dir/../passwd", "etc/passwd", nil},
		{"/dir/back/back/file", "etc/deep/file", nil}, {"/slash/passwd", "etc/passwd", nil}, {"/self/self/top", "top", nil},
		{"/c40", "", syscall.ELOOP}, {"/c39", "top", nil}, {"/loop", "", syscall.ELOOP}, {"/loop/x", "", syscall.ELOOP},
		{"/dangling", "", fs.ErrNotExist}, {"/nothing", "", fs.ErrNotExist}, {"/host", "", fs.ErrNotExist}, {"/etc/nothing/x", "", fs.ErrNotExist},
		{"/top/", "", syscall.ENOTDIR}, {"/top/x", "", syscall.ENOTDIR}, {"/top/..", "", syscall.ENOTDIR}, {"/etc/passwd/.", "", syscall.ENOTDIR},
		{"/etc", "", syscall.EISDIR}, {"/", "", syscall.EISDIR}, {"", "", syscall.EISDIR}, {"/dir/", "", syscall.EISDIR},
	} {
		b, err := v.ReadFile(c.path, 100)
		perr := (*fs.PathError)(nil)
		if string(b) != c.content || !errors.Is(err, c.err) || err != nil && !errors.As(err, &perr) {
			t.Errorf("%q: %q, %v, want %q, %v", c.path, b, err, c.content, c.err)
		}
	}
	if in, err := v.Lstat("/loop"); err != nil || !in.IsSymlink() {
		t.Errorf("Lstat of a link: %v", err)
	}
	if in, err := v.Lstat("/dir/"); err != nil || !in.IsDir() {
		t.Errorf("Lstat of a link and a slash: %v", err)
	}
	if target, err := v.Readlink("/etc/deep/rel"); err != nil || target != "../passwd" {
		t.Errorf("Readlink: %q, %v", target, err)
	}
	if _, err := v.Readlink("/top"); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Readlink of a file: %v", err)
	}
	if _, err := v.ReadFile("/etc/passwd", 5); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("a file above the limit: %v", err)
	}
	if _, err := v.ReadDir("/top"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("ReadDir of a file: %v", err)
	}
	if list, err := v.ReadDir("/dir"); err != nil || len(list) != 4 {
		t.Errorf("ReadDir: %v, %v", list, err)
	}
}

func TestWalk(t *testing.T) {
	v := pathTree(t)
	var got []string
	stop := errors.New("stop")
	walk := func(path string, answer map[string]error) (string, error) {
		got = nil
		err := v.Walk(path, func(path string, _ *Inode, err error) error {
			if err != nil {
				t.Errorf("%q: %v", path, err)
			}
			got = append(got, path)
			return answer[path]
		})
		return strings.Join(got, " "), err
	}
	for _, c := range []struct {
		path   string
		answer map[string]error
		want   string
		err    error
	}{
		{"etc/", nil, "/etc /etc/deep /etc/deep/back /etc/deep/er /etc/deep/file /etc/deep/rel /etc/passwd", nil},
		{"/dir/../deep/.//er", nil, "/dir/../deep/er", nil},
		{"/top", nil, "/top", nil},
		{"/top", map[string]error{"/top": fs.SkipDir}, "/top", nil},
		{"/etc", map[string]error{"/etc/deep": fs.SkipDir}, "/etc /etc/deep /etc/passwd", nil},
		{"/etc", map[string]error{"/etc/deep/file": fs.SkipDir}, "", nil},
		{"/etc", map[string]error{"/etc/deep": fs.SkipAll}, "/etc /etc/deep", nil},
		{"/etc", map[string]error{"/etc/deep": stop}, "/etc /etc/deep", stop},
		{"/etc/nothing", nil, "", fs.ErrNotExist},
	} {
		names, err := walk(c.path, c.answer)
		if !errors.Is(err, c.err) || c.want != "" && len(strings.Fields(names)) != len(strings.Fields(c.want)) {
			t.Errorf("%q: %q, %v, want %q, %v", c.path, names, err, c.want, c.err)
		}
		for _, w := range strings.Fields(c.want) {
			if !strings.Contains(" "+names+" ", " "+w+" ") {
				t.Errorf("%q: %q is not in %q", c.path, w, names)
			}
		}
	}
}

// A walk that may hold few entries finds what another one does.
func TestWalkHoldsLittle(t *testing.T) {
	v := look(t, mkfs(t, hostTree(t), "64M", "-t", "ext4", "-b", "1024"))
	paths := func(most int) (list []string) {
		held := 0
		w := walk{v: v, seen: map[uint32]bool{}, most: most}
		w.visit = func(path string, _ *Inode, err error) error {
			held = max(held, w.held)
			list = append(list, path)
			return err
		}
		root, err := v.Stat("/")
		if err == nil {
			err = w.inode("/", &root)
		}
		if err != nil || w.held != 0 || held > most+50 {
			t.Errorf("at most %d: %d held, %d in the end, %v", most, held, w.held, err)
		}
		slices.Sort(list)
		return list
	}
	all := paths(maxHeld)
	for _, most := range []int{1, 7, 100} {
		if some := paths(most); len(all) < 20 || !slices.Equal(some, all) {
			t.Errorf("at most %d: %d paths of %d", most, len(some), len(all))
		}
	}
}

// Directories that contain each other are each entered once.
func TestWalkCycle(t *testing.T) {
	image := mkfs(t, "", "8M", "-t", "ext4")
	debugfs(t, image, "mkdir a", "mkdir a/b", "ln a a/b/a", "ln a/b a/again", "ln /a/b/a /a/b/../third")
	v := look(t, image)
	var bad, all int
	if err := v.Walk("/", func(_ string, _ *Inode, err error) error {
		if all++; errors.Is(err, mem.ErrInconsistent) {
			bad++
		}
		return nil
	}); err != nil || bad < 2 || all > 20 {
		t.Errorf("%d of %d names are wrong, %v", bad, all, err)
	}
}

func TestCasefold(t *testing.T) {
	image := mkfs(t, "", "8M", "-t", "ext4", "-O", "casefold")
	debugfs(t, image, "mkdir fold", "mkdir fold/Straße", "mkdir plain", "mkdir plain/Name", fmt.Sprintf("set_inode_field fold flags %#x", FlagCasefold|FlagExtents))
	v := look(t, image)
	for path, found := range map[string]bool{"/fold/STRAßE": true, "/fold/Straße": true, "/FOLD": false, "/plain/name": false, "/plain/Name": true, "/fold/other": false} {
		if _, err := v.Stat(path); (err == nil) != found {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestEncrypted(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("ciphertext"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := mkfs(t, dir, "8M", "-t", "ext4", "-O", "encrypt")
	debugfs(t, image, "mkdir crypt", "ln secret crypt/\x01\x02\x03", fmt.Sprintf("set_inode_field secret flags %#x", FlagEncrypt|FlagExtents),
		fmt.Sprintf("set_inode_field crypt flags %#x", FlagEncrypt|FlagExtents))
	v := look(t, image)
	list, err := v.ReadDir("/crypt")
	if err != nil || len(list) != 1 || !list[0].Encrypted {
		t.Fatalf("%+v, %v", list, err)
	}
	if _, err := v.Stat("/crypt/" + list[0].Name); err != nil {
		t.Error(err)
	}
	if _, err := v.OpenFile("/secret"); !errors.Is(err, ErrEncrypted) {
		t.Errorf("opened ciphertext: %v", err)
	}
}

// A Volume and a File are safe for concurrent use.
func TestConcurrent(t *testing.T) {
	v := look(t, mkfs(t, hostTree(t), "64M", "-t", "ext4"))
	f, err := v.OpenFile("/holes")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			p := make([]byte, 50000)
			for range 50 {
				off := rnd.Int64N(12 << 20)
				if _, err := f.ReadAt(p, off); err != nil {
					t.Error(err)
				}
				for j := range p {
					at := off + int64(j)
					if n := (at - 77) / 16384; at >= 77 && n < 600 && (at-77)%16384 < 100 {
						if p[j] != pattern(100, byte(n))[(at-77)%16384] {
							t.Errorf("byte %d", at)
						}
					} else if p[j] != 0 {
						t.Errorf("byte %d of a hole is %d", at, p[j])
					}
				}
			}
			if err := v.Walk("/", func(_ string, _ *Inode, err error) error { return err }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n, err := f.ReadAt(make([]byte, 10), f.Size()-3); n != 3 || err != io.EOF {
		t.Errorf("%d bytes at the end, %v", n, err)
	}
	if n, err := f.ReadAt(make([]byte, 10), f.Size()); n != 0 || err != io.EOF {
		t.Errorf("%d bytes behind the end, %v", n, err)
	}
	if _, err := f.ReadAt(make([]byte, 10), -1); err == nil {
		t.Error("read before the start")
	}
}

// exercise does with a volume what a user may, and gives the number of names.
func exercise(tb testing.TB, v *Volume) int {
	n := 0
	_ = v.Walk("/", func(path string, in *Inode, err error) error {
		if n++; n > 20000 {
			return fs.SkipAll
		}
		if err != nil || in.Mode == 0 {
			return nil
		}
		_, _ = v.Xattrs(in)
		if in.IsSymlink() {
			_, _ = v.Target(in)
		}
		if f, err := v.OpenInode(in); err == nil {
			p := make([]byte, 9000)
			for _, off := range []int64{0, f.Size() / 2, f.Size() - 5} {
				if n, err := f.ReadAt(p, max(off, 0)); n < 0 || n > len(p) || n < len(p) && err == nil {
					tb.Errorf("%q: %d bytes, %v", path, n, err)
				}
			}
		}
		return nil
	})
	return n
}

// Patches of any kind on a sound image are survived. The input is a list of offsets and what to put there; offsets are
// taken where metadata is.
func FuzzVolume(f *testing.F) {
	dir := f.TempDir()
	for _, name := range []string{"a/b/c", "many"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			f.Fatal(err)
		}
	}
	for i := range 60 {
		if err := os.WriteFile(filepath.Join(dir, "many", fmt.Sprint(i)), pattern(i*40, byte(i)), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	if err := os.Symlink(strings.Repeat("l", 100), filepath.Join(dir, "link")); err != nil {
		f.Fatal(err)
	}
	var images [][]byte
	for _, options := range []string{"ext4 -O inline_data -b 1024 -J size=1", "ext2 -b 1024", "ext4 -O ^metadata_csum,^has_journal -b 1024"} {
		b, err := os.ReadFile(mkfs(f, dir, "4M", strings.Fields("-N 128 -t "+options)...))
		if err != nil {
			f.Fatal(err)
		}
		images = append(images, b)
	}
	f.Add(uint8(0), []byte{0, 0, 0, 0, 0, 0})
	f.Add(uint8(1), []byte{4, 24, 0, 1, 9, 9, 8, 0, 0, 2, 255, 255})
	f.Add(uint8(2), []byte{5, 8, 0, 1, 255, 127})
	f.Fuzz(func(t *testing.T, which uint8, script []byte) {
		image := append([]byte(nil), images[int(which)%len(images)]...)
		for ; len(script) >= 6; script = script[6:] {
			// Most of the metadata is in the first blocks; the others are reached, too.
			at := int(script[0])<<10 | int(script[1])<<2 | int(script[3]&3)
			if script[3]&0x80 != 0 {
				at += int(script[2]) << 18
			}
			at %= len(image) - 2
			image[at], image[at+1] = script[4], script[5]
		}
		v, err := Open(block.Bytes(image))
		if err != nil {
			if !errors.Is(err, mem.ErrInconsistent) && !errors.Is(err, ErrNoSuper) && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, ErrJournalDevice) && !errors.Is(err, ErrExternalJournal) {
				t.Fatalf("error without a class: %v", err)
			}
			return
		}
		defer v.Close()
		exercise(t, v)
	})
}

func TestOrphans(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := mkfs(t, dir, "16M", "-t", "ext4", "-O", "orphan_file,^metadata_csum")
	v := look(t, image)
	if list, err := v.Orphans(); err != nil || len(list) != 0 {
		t.Errorf("none: %v, %v", list, err)
	}
	var ino []uint32
	for _, name := range []string{"a", "b", "c"} {
		in, err := v.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		ino = append(ino, in.Number)
	}
	file, err := v.Inode(v.sb.OrphanFile)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Extents(&file, func(e Extent) bool {
		le.PutUint32(b[int(e.Physical)<<v.sb.blockBits+40:], ino[2])
		return false
	}, nil); err != nil {
		t.Fatal(err)
	}
	le.PutUint32(b[SuperOffset+0xe8:], ino[0])
	setNext := func(ino, next uint32) {
		g, index := v.sb.InodeGroup(ino)
		group, err := v.group(g)
		if err != nil {
			t.Fatal(err)
		}
		block, off, err := v.sb.InodePlace(group, index)
		if err != nil {
			t.Fatal(err)
		}
		le.PutUint32(b[int(block)<<v.sb.blockBits+off+20:], next)
	}
	setNext(ino[0], ino[1])
	for next, fails := range map[uint32]bool{0: false, ino[0]: true, 1 << 30: true} {
		setNext(ino[1], next)
		w, err := Open(block.Bytes(b))
		if err != nil {
			t.Fatal(err)
		}
		list, err := w.Orphans()
		if fmt.Sprint(list) != fmt.Sprint(ino) || (err != nil) != fails {
			t.Errorf("%v, %v, want %v", list, err, ino)
		}
		w.Close()
	}
}

// Numbers of more than 32 bits are taken whole.
func TestWideBlocks(t *testing.T) {
	b := plainSuper(0, everything, 0)
	groups := uint32(1<<17 + 4)
	le.PutUint32(b[0x150:], 1)
	le.PutUint32(b[4:], 4*32768)
	le.PutUint32(b[0:], groups*2048)
	s := mustSuper(t, b)
	if s.Groups != groups || s.Blocks != 1<<32+4*32768 {
		t.Fatalf("%d groups, %d blocks", s.Groups, s.Blocks)
	}
	high := uint64(1<<32 + 5)
	raw := append(extentInode(4, Extent{7, high, 2, false}), make([]byte, 96)...)
	le.PutUint16(raw[118:], 1)
	le.PutUint32(raw[104:], 6)
	in, err := s.ParseInode(12, raw)
	if err != nil || in.FileACL != high+1 {
		t.Errorf("attributes in %d, %v", in.FileACL, err)
	}
	if err := s.Extents(nil, &in, func(e Extent) bool {
		if e.Physical != high {
			t.Errorf("%+v", e)
		}
		return true
	}, nil); err != nil {
		t.Error(err)
	}
	desc := make([]byte, 64)
	le.PutUint32(desc[8:], 9)
	le.PutUint32(desc[40:], 1)
	if block, off, err := s.InodePlace(s.ParseGroup(desc), 17); err != nil || block != 1<<32+9+1 || off != 256 {
		t.Errorf("inode in block %d at %d, %v", block, off, err)
	}
}
