package procram

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Block is a run of guest RAM in the address space of the process that runs the
// guest.
type Block struct {
	HVA     uint64 // where it starts there
	Size    uint64
	Mapping Mapping // that it is part of
}

// Off is where the block starts in its file.
func (b Block) Off() uint64 { return b.Mapping.Off + b.HVA - b.Mapping.Start }

// Open opens the file behind a block: through a descriptor of the process, by
// its mapping, or by its path.
func (b Block) Open(pid int, writable bool) (*os.File, error) {
	flag := unix.O_RDONLY | unix.O_CLOEXEC
	if writable {
		flag = unix.O_RDWR | unix.O_CLOEXEC
	}
	var first error
	try := func(path string) *os.File {
		f, err := b.open(path, flag)
		if err != nil && first == nil {
			first = err
		}
		return f
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		first = err
	}
	for _, e := range fds {
		p := dir + "/" + e.Name()
		var st unix.Stat_t
		if unix.Stat(p, &st) != nil || st.Ino != b.Mapping.Inode || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if f := try(p); f != nil {
			return f, nil
		}
	}
	last := b.Mapping.End
	if len(b.Mapping.Cuts) > 1 {
		last = b.Mapping.Cuts[1]
	}
	if f := try(fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, b.Mapping.Start, last)); f != nil {
		return f, nil
	}
	if strings.HasPrefix(b.Mapping.Path, "/") && !b.Mapping.Memfd() {
		if f := try(fmt.Sprintf("/proc/%d/root%s", pid, b.Mapping.Path)); f != nil {
			return f, nil
		}
	}
	if first == nil {
		first = os.ErrNotExist
	}
	return nil, fmt.Errorf("open the file behind guest RAM, %q: %w", b.Mapping.Path, first)
}

// open opens the file at a path if it is the block's; nil: it is another. What is there was put there by the process, which may
// be anybody's: so it is only looked at until it is known. To open a pipe is to wait for who writes into it, and to
// open a device may be to start it (a watchdog).
func (b Block) open(path string, flag int) (*os.File, error) {
	at, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	if !b.is(at) {
		return nil, nil
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), flag, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// is makes sure that f is the file that the process has mapped, and not, say, a
// disk image of the same number on another file system. Where mappings and files
// tell different devices (btrfs, overlayfs), their names must agree.
func (b Block) is(f *os.File) bool {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Ino != b.Mapping.Inode || st.Mode&unix.S_IFMT != unix.S_IFREG ||
		uint64(st.Size) < b.Off()+b.Size {
		return false
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return Device(&st) == b.Mapping.Dev || err == nil && name == b.Mapping.Path
}

// Device is a file's device as /proc/PID/maps writes it.
func Device(st *unix.Stat_t) string {
	return fmt.Sprintf("%02x:%02x", unix.Major(st.Dev), unix.Minor(st.Dev))
}
