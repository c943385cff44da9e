package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

// variants are the sets of options for mke2fs that are all to be read.
var variants = []struct{ name, options string }{
	{"ext4", "-t ext4"},
	{"ext2", "-t ext2"},
	{"ext3", "-t ext3"},
	{"inline", "-t ext4 -O inline_data"},
	{"revision 0", "-t ext2 " + revision0()},
	{"1k", "-t ext4 -b 1024"},
	{"2k", "-t ext4 -b 2048"},
	{"16k", "-t ext4 -b 16384"},
	{"64k", "-t ext4 -b 65536"},
	{"64k ext2", "-t ext2 -b 65536"},
	{"1k ext2", "-t ext2 -b 1024"},
	{"inline large inodes", "-t ext4 -O inline_data -I 1024 -b 1024"},
	{"inline 64k", "-t ext4 -O inline_data -b 65536 -I 4096"},
	{"bigalloc", "-t ext4 -O bigalloc -C 65536"},
	{"bigalloc 1k", "-t ext4 -O bigalloc -b 1024 -C 16384"},
	{"meta_bg", "-t ext4 -O meta_bg,^resize_inode"},
	{"meta_bg 1k", "-t ext4 -O meta_bg,^resize_inode -b 1024"},
	{"meta_bg bigalloc 1k", "-t ext4 -O meta_bg,^resize_inode,bigalloc -b 1024 -C 4096 -g 8192"},
	{"32 bit", "-t ext4 -O ^64bit"},
	{"block maps", "-t ext4 -O ^extents,^64bit"},
	{"large_dir", "-t ext4 -O large_dir"},
	{"ea_inode", "-t ext4 -O ea_inode"},
	{"csum_seed", "-t ext4 -O metadata_csum_seed -U 12345678-1234-1234-1234-123456789abc"},
	{"orphan_file", "-t ext4 -O orphan_file"},
	{"casefold", "-t ext4 -O casefold"},
	{"encrypt", "-t ext4 -O encrypt"},
	{"gdt_csum", "-t ext4 -O ^metadata_csum,uninit_bg"},
	{"sparse_super2", "-t ext4 -O sparse_super2"},
	{"small groups", "-t ext4 -O ^flex_bg -g 1024"},
	{"small groups meta_bg", "-t ext4 -b 1024 -O ^flex_bg,meta_bg,^resize_inode,^sparse_super -g 256 -N 16000"},
	{"quota", "-t ext4 -O quota,project,verity"},
	{"small inodes", "-t ext4 -I 128"},
	{"no journal", "-t ext4 -O ^has_journal"},
	{"fast_commit", "-t ext4 -O fast_commit,stable_inodes,mmp"},
	{"no filetype", "-t ext4 -O ^filetype"},
	{"packed", "-t ext4 -E packed_meta_blocks=1"},
}

// revision0 asks for a superblock as it was before 1995, in the words of this mke2fs: e2fsprogs 1.47.1 took them away and
// gave others.
func revision0() string {
	out, _ := exec.Command("mke2fs", "-n", "-q", "-r", "0", os.DevNull).CombinedOutput()
	if strings.Contains(string(out), "removed") {
		return "-E revision=0" // which goes without features, and refuses to be told so
	}
	return "-r 0 -O none"
}

func TestVariants(t *testing.T) {
	tree := hostTree(t)
	want := hostListing(t, tree)
	for i, c := range variants {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && i >= 4 {
				t.Skip("short: four kinds of file systems only")
			}
			image := mkfs(t, tree, "128M", strings.Fields(c.options)...)
			v := look(t, image)
			got := volumeListing(t, v)
			if diff := got.diff(want); diff != "" {
				t.Error(diff)
			}
			if !v.Super().ChecksumOK {
				t.Error("superblock: wrong checksum")
			}
			for g := range v.sb.Groups {
				if _, err := v.sb.ReadGroup(v, g); err != nil {
					t.Error(err)
				}
			}
			compareDebugfs(t, v, image)
			// The same with the directories hashed and packed anew.
			if v.sb.Compat&CompatDirIndex != 0 {
				run(t, "e2fsck", "-fyD", image)
				v := look(t, image)
				got := volumeListing(t, v)
				if diff := got.diff(want); diff != "" {
					t.Errorf("hashed: %s", diff)
				}
				many, err := v.Stat("/many")
				if err != nil || many.Flags&FlagIndex == 0 && v.sb.BlockSize < 1<<16 {
					t.Errorf("/many is not hashed (flags %#x): %v", many.Flags, err)
				}
			}
		})
	}
}

var (
	statFlags  = regexp.MustCompile(`Flags: 0x([0-9a-f]+)`)
	statGen    = regexp.MustCompile(`Generation: (\d+)`)
	statBlocks = regexp.MustCompile(`Blockcount: (\d+)`)
	statACL    = regexp.MustCompile(`File ACL: (\d+)`)
	statTime   = regexp.MustCompile(`(?m)^ *(\w+): 0x([0-9a-f]{8})(?::([0-9a-f]{8}))? `)
)

// compareDebugfs compares some inodes with what debugfs says of them.
func compareDebugfs(t *testing.T, v *Volume, image string) {
	t.Helper()
	paths := []string{"/", "/holes", "/file300000", "/many", "/link200", "/file1", "/file10000", "/deep/d/d", "/file100"}
	var commands []string
	for _, p := range paths {
		commands = append(commands, "stat "+p, "blocks "+p)
	}
	out := strings.Split(debugfs(t, image, commands...), "debugfs: ")[1:]
	for i, p := range paths {
		in, err := v.Lstat(p)
		if err != nil {
			t.Error(err)
			continue
		}
		stat, blocks := out[2*i], out[2*i+1]
		num := func(re *regexp.Regexp, base int) uint64 {
			m := re.FindStringSubmatch(stat)
			if m == nil {
				t.Fatalf("%s: no %v in %s", p, re, stat)
			}
			n, err := strconv.ParseUint(m[1], base, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if f, g, b := num(statFlags, 16), num(statGen, 10), num(statBlocks, 10); uint32(f) != in.Flags || uint32(g) != in.Generation || b != in.Blocks {
			t.Errorf("%s: flags %#x, generation %d, %d blocks, debugfs says %#x, %d, %d", p, in.Flags, in.Generation, in.Blocks, f, g, b)
		}
		if acl := num(statACL, 10); acl != in.FileACL {
			t.Errorf("%s: attributes in block %d, debugfs says %d", p, in.FileACL, acl)
		}
		for _, m := range statTime.FindAllStringSubmatch(stat, -1) {
			sec, _ := strconv.ParseUint(m[2], 16, 32)
			extra, _ := strconv.ParseUint("0"+m[3], 16, 32)
			want := Timestamp{Sec: int64(int32(sec))}
			want.extend(uint32(extra))
			got := map[string]Timestamp{"atime": in.Atime, "ctime": in.Ctime, "mtime": in.Mtime, "crtime": in.Crtime}[m[1]]
			if got != want {
				t.Errorf("%s: %s is %v, debugfs says %v", p, m[1], got, want)
			}
		}
		compareBlocks(t, v, p, &in, strings.Fields(blocks[strings.IndexByte(blocks, '\n')+1:]))
	}
}

// compareBlocks compares the blocks of an inode with those that debugfs lists, those of the map among them.
func compareBlocks(t *testing.T, v *Volume, path string, in *Inode, fields []string) {
	t.Helper()
	want, got := map[string]bool{}, map[string]bool{}
	for _, f := range fields {
		want[f] = true
	}
	var last uint64
	err := v.Extents(in, func(e Extent) bool {
		if e.Logical < last {
			t.Errorf("%s: block %d behind %d", path, e.Logical, last)
		}
		last = e.Logical + uint64(e.Len)
		for i := range uint64(e.Len) {
			got[fmt.Sprint(e.Physical+i)] = true
		}
		return true
	}, func(b uint64) bool {
		got[fmt.Sprint(b)] = true
		return true
	})
	if err != nil {
		t.Errorf("%s: %v", path, err)
	}
	if !in.hasMap() {
		return
	}
	for b := range got {
		if !want[b] {
			t.Errorf("%s: debugfs knows nothing of block %s", path, b)
		}
	}
	for b := range want {
		if !got[b] {
			t.Errorf("%s: block %s of debugfs is missing", path, b)
		}
	}
}

func TestFS(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a/b/c/d", "empty", "many"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 12 {
		name := filepath.Join(dir, "many", fmt.Sprintf("f%d", i))
		if err := os.WriteFile(name, pattern(i*500, byte(i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"a/up": "../many/f7", "abs": "/many", "a/b/over": "../../abs/f9"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, options := range []string{"ext4", "ext2", "ext4 -O inline_data"} {
		v := look(t, mkfs(t, dir, "16M", strings.Fields("-t "+options)...))
		if err := fstest.TestFS(v.FS(), "many/f11", "a/b/c/d", "a/up", "abs", "a/b/over"); err != nil {
			t.Error(err)
		}
	}
}

// What io/fs does not allow or what holds no data is told as an error.
func TestFSRefuses(t *testing.T) {
	v := look(t, mkfs(t, hostTree(t), "128M", "-t", "ext4"))
	fsys := v.FS()
	if b, err := fs.ReadFile(fsys, "file10000"); err != nil || !bytes.Equal(b, pattern(10000, 10000&0xff)) {
		t.Errorf("file10000: %d bytes, %v", len(b), err)
	}
	for name, want := range map[string]error{
		"fifo": syscall.EINVAL, "/file1": fs.ErrInvalid, "file1/": fs.ErrInvalid, "sub/caf\xe9 \n\x01": fs.ErrInvalid, "sub": syscall.EISDIR,
		"link60": fs.ErrNotExist, "nowhere": fs.ErrNotExist, "file1/x": syscall.ENOTDIR,
	} {
		if _, err := fs.ReadFile(fsys, name); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", name, err, want)
		}
	}
	if _, err := v.OpenFile("sub/caf\xe9 \n\x01"); err != nil {
		t.Error(err)
	}
}
