package procram

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const someMaps = `55d0c0000000-55d0c0400000 r--p 00000000 08:01 123 /usr/bin/qemu-system-x86_64
55d0c2000000-55d0c2100000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0004000000 rw-p 00000000 00:00 0
7f0004000000-7f0004001000 ---p 00000000 00:00 0
7f0010000000-7f0012000000 rw-s 00000000 00:01 77 /memfd:memory-backend-memfd (deleted)
7f0012000000-7f0014000000 rw-s 02000000 00:01 77 /memfd:memory-backend-memfd (deleted)
7f0020000000-7f0020010000 rw-p 00000000 00:00 0
7f0020010000-7f0028010000 rw-p 00000000 00:00 0
7f0040ff0000-7f0045000000 rw-p 00000000 00:00 0
7f0050000000-7f0051000000 rw-s 00001000 00:1a 99 /dev/shm/my ram (deleted)
`

func TestParseMaps(t *testing.T) {
	m, err := ParseMaps(someMaps)
	if err != nil {
		t.Fatal(err)
	}
	if len(m) != 5 {
		t.Fatalf("%d mappings: %+v", len(m), m)
	}
	if v := m[1]; v.Size() != 64<<20 || !v.Memfd() || !v.Shared() || v.Inode != 77 || !slices.Equal(v.Cuts, []uint64{0x7f0010000000, 0x7f0012000000}) {
		t.Errorf("memfd in two pieces: %+v", v)
	}
	if v := m[4]; v.Path != "/dev/shm/my ram (deleted)" || v.Off != 0x1000 || v.Dev != "00:1a" {
		t.Errorf("file: %+v", v)
	}
	for _, bad := range []string{"x", "1-2", "2-1 rw-p 0 0:0 0", "1-2 rwp 0 0:0 0", "g-2 rw-p 0 0:0 0", "1-2 rw-p 0 0:0 99999999999999999999999"} {
		if m, err := ParseMaps(bad); err == nil {
			t.Errorf("ParseMaps(%q) = %+v", bad, m)
		}
	}
}

func TestParseStat(t *testing.T) {
	rest := " S 42 " + strings.Repeat("0 ", 17) + "12345 0 0"
	for _, name := range []string{"qemu", "a) S 1 (b", "x\ny"} {
		ppid, start, err := ParseStat([]byte("7 (" + name + ")" + rest))
		if ppid != 42 || start != 12345 || err != nil {
			t.Errorf("%q: %d, %d, %v", name, ppid, start, err)
		}
	}
	for _, bad := range []string{"", ")", "7 (x) S", "7 (x) Z 1 " + strings.Repeat("0 ", 20)} {
		if _, _, err := ParseStat([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestIsFile: a file of the right number and size on another device is not RAM.
func TestIsFile(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	good := Mapping{Start: 0x10000, End: 0x12000, Inode: st.Ino, Dev: Device(&st), Path: f.Name()}
	for _, c := range []struct {
		name string
		edit func(v *Mapping)
		want bool
	}{
		{"it is", func(*Mapping) {}, true},
		{"mapped under another name", func(v *Mapping) { v.Path = "/x" }, true},
		{"devices told apart", func(v *Mapping) { v.Dev = "ff:ff" }, true},
		{"another device", func(v *Mapping) { v.Dev, v.Path = "ff:ff", "/x" }, false},
		{"another inode", func(v *Mapping) { v.Inode++ }, false},
		{"behind its end", func(v *Mapping) { v.Off = 4096 }, false},
	} {
		v := good
		c.edit(&v)
		if got := (Block{HVA: v.Start, Size: 8192, Mapping: v}).is(f); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

// TestPipe: a pipe that lies where the RAM's file was is not waited for.
func TestPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	b := Block{HVA: 0x10000, Size: 4096, Mapping: Mapping{Start: 0x10000, End: 0x11000, Perms: "rw-s", Dev: "ff:ff", Inode: 1 << 60, Path: pipe}}
	for _, writable := range []bool{false, true} {
		if f, err := b.Open(os.Getpid(), writable); err == nil {
			t.Errorf("opened %s", f.Name())
		}
	}
}
