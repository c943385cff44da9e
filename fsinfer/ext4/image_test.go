package ext4

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/block"
	"vmscope/internal/guestlab"
)

// tool finds one of e2fsprogs's programs. Without it the test is skipped, or fails where nothing may be missing.
func tool(tb testing.TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path = filepath.Join(dir, name)
			_, err = os.Stat(path)
		}
	}
	switch {
	case err == nil:
		return path
	case os.Getenv(guestlab.RequireGuests) == "1":
		tb.Fatalf("%s of e2fsprogs is not there", name)
	}
	tb.Skipf("%s of e2fsprogs is not there", name)
	return ""
}

// run runs a tool and gives what it printed. e2fsck's status 1 says that it mended something.
func run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	cmd := exec.Command(tool(tb, name), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "DEBUGFS_PAGER=cat", "MKE2FS_SYNC=0", "LC_ALL=C", "TZ=UTC")
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && name == "e2fsck" && exit.ExitCode() == 1 {
		err = nil
	}
	if err != nil {
		tb.Fatalf("%s %q: %v\n%s%s", name, args, err, out, stderr.Bytes())
	}
	return string(out)
}

// debugfs runs commands on an image, as root may.
func debugfs(tb testing.TB, image string, commands ...string) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "commands")
	if err := os.WriteFile(file, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return run(tb, "debugfs", "-w", "-f", file, image)
}

// mkfs makes an image of a directory ("": of an empty one).
func mkfs(tb testing.TB, dir, size string, options ...string) string {
	tb.Helper()
	image := filepath.Join(tb.TempDir(), "image")
	args := append([]string{"-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"}, options...)
	if dir != "" {
		args = append(args, "-d", dir)
	}
	run(tb, "mke2fs", append(args, image, size)...)
	return image
}

// look opens an image; it is closed with the test.
func look(tb testing.TB, image string) *Volume {
	tb.Helper()
	f, err := block.OpenFile(image)
	if err != nil {
		tb.Fatal(err)
	}
	v, err := Open(f)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { v.Close(); f.Close() })
	return v
}

// pattern gives n bytes that tell where they are.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1103515245 + 12345
		b[i] = byte(x >> 16)
	}
	return b
}

// hostTree fills a directory with all kinds of files.
func hostTree(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	write := func(name string, content []byte, mode os.FileMode) {
		tb.Helper()
		must(os.WriteFile(filepath.Join(dir, name), content, 0o600))
		must(os.Chmod(filepath.Join(dir, name), mode))
	}
	mkdir := func(name string) { tb.Helper(); must(os.MkdirAll(filepath.Join(dir, name), 0o755)) }
	for _, n := range []int{0, 1, 40, 59, 60, 61, 100, 150, 1023, 1024, 4096, 10000, 300000} {
		write(fmt.Sprintf("file%d", n), pattern(n, byte(n)), 0o644)
	}
	write("setuid", []byte("x"), 0o755|os.ModeSetuid|os.ModeSetgid)
	must(os.Chown(filepath.Join(dir, "file100"), os.Getuid(), os.Getgid()))
	if os.Getuid() == 0 {
		must(os.Chown(filepath.Join(dir, "file60"), 70000, 1<<31))
		must(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	}
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o622))
	for _, n := range []int{1, 30, 58, 59, 60, 61, 200, 1000} {
		must(os.Symlink(strings.Repeat("t", n), filepath.Join(dir, fmt.Sprintf("link%d", n))))
	}
	must(os.Symlink("../sub/deep/../file", filepath.Join(dir, "over")))
	mkdir("sub/deep")
	mkdir("empty")
	mkdir("sticky")
	must(os.Chmod(filepath.Join(dir, "sticky"), 0o777|os.ModeSticky))
	write("sub/file", pattern(5000, 7), 0o400)
	write("sub/caf\xe9 \n\x01", []byte("not UTF-8"), 0o644)
	write("sub/"+strings.Repeat("n", 255), []byte("long"), 0o644)
	must(os.Link(filepath.Join(dir, "sub/file"), filepath.Join(dir, "sub/deep/second")))
	at := "deep"
	for range 20 {
		at += "/d"
	}
	mkdir(at)
	write(at+"/bottom", []byte("bottom"), 0o644)
	mkdir("many")
	for i := range 700 {
		write(fmt.Sprintf("many/entry-with-a-name-%d", i*7919), nil, 0o644)
	}
	// Holes: many ranges, and blocks far apart, so that every level of a block map of 1 KiB is in use.
	holes, err := os.Create(filepath.Join(dir, "holes"))
	must(err)
	for i := range 600 {
		_, err = holes.WriteAt(pattern(100, byte(i)), int64(i)*16384+77)
		must(err)
	}
	_, err = holes.WriteAt([]byte("far"), 1<<30+4711) // mke2fs loses a hole behind it
	must(err)
	must(holes.Close())
	for name, value := range map[string]string{"user.short": "v", "user.empty": "", "user.long": string(pattern(900, 3))} {
		if err := unix.Setxattr(filepath.Join(dir, "file10000"), name, []byte(value), 0); err != nil {
			tb.Logf("no extended attributes here: %v", err)
		}
	}
	stamp := time.Date(2031, 1, 2, 3, 4, 5, 678901234, time.UTC)
	must(os.Chtimes(filepath.Join(dir, "file1"), stamp, stamp))
	return dir
}

// listing is a tree as one line for each name.
type listing map[string]string

// diff tells where two listings differ, on at most 20 lines.
func (l listing) diff(want listing) string {
	var lines []string
	for path, s := range l {
		if want[path] != s {
			lines = append(lines, fmt.Sprintf("%q is %q, want %q", path, s, want[path]))
		}
	}
	for path, s := range want {
		if _, ok := l[path]; !ok {
			lines = append(lines, fmt.Sprintf("%q is missing, want %q", path, s))
		}
	}
	sort.Strings(lines)
	return strings.Join(lines[:min(len(lines), 20)], "\n")
}

const lineFormat = "mode=%o uid=%d gid=%d nlink=%d size=%d rdev=%x mtime=%d %s"

// hostListing lists a directory of the host.
func hostListing(tb testing.TB, root string) listing {
	tb.Helper()
	l := listing{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		more := ""
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFDIR:
			st.Size = 0
		case syscall.S_IFLNK:
			more, err = os.Readlink(path)
		case syscall.S_IFREG:
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			more = digest(tb, f, st.Size)
		}
		if path == root { // mke2fs does not take it over
			st.Mtim.Sec = 0
		}
		rdev := uint64(unix.Major(st.Rdev))<<32 | uint64(unix.Minor(st.Rdev))
		l["/"+strings.TrimPrefix(strings.TrimPrefix(path, root), "/")] = fmt.Sprintf(lineFormat,
			st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, rdev, st.Mtim.Sec, more)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// volumeListing lists a volume by Walk. /lost+found, which mke2fs adds, is taken out, and from the root's links too.
func volumeListing(tb testing.TB, v *Volume) listing {
	tb.Helper()
	l := listing{}
	err := v.Walk("/", func(path string, in *Inode, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if path == "/lost+found" {
			return fs.SkipDir
		}
		if path == "/" {
			in.Links--
			in.Mtime.Sec = 0
		}
		more, size := "", in.Size
		switch {
		case in.IsDir():
			size = 0
		case in.IsSymlink():
			more, err = v.Target(in)
		case in.IsRegular():
			f, err := v.OpenInode(in)
			if err != nil {
				return err
			}
			more = digest(tb, f, size)
		}
		if !in.ChecksumOK {
			tb.Errorf("%q: inode %d has a wrong checksum", path, in.Number)
		}
		l[path] = fmt.Sprintf(lineFormat, in.Mode, in.UID, in.GID, in.Links, size, in.Rdev(), in.Mtime.Sec, more)
		return err
	})
	if err != nil {
		tb.Error(err)
	}
	return l
}

// digest is the hash of a file's content, of the ends only where it is large.
func digest(tb testing.TB, r io.ReaderAt, size int64) string {
	tb.Helper()
	const most = 12 << 20
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, min(size, most))); err != nil {
		tb.Error(err)
	}
	if size > most {
		if _, err := io.Copy(h, io.NewSectionReader(r, size-1<<20, 1<<20)); err != nil {
			tb.Error(err)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}
