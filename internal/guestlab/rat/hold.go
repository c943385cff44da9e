package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"vmscope/internal/guestlab/wire"
)

// Descriptors on which a holding process gets its orders and reports. Both are closed before it settles.
const (
	holdOrders = 3
	holdReport = 4
)

// isHolder tells whether this process was started by spawn. Neither its arguments nor its environment can say so,
// since those are the test's to choose; the place of its program file does.
func isHolder() bool {
	return strings.HasPrefix(string(link("/proc/self/exe")), spawnDir+"/")
}

// In a holder the main goroutine keeps the main thread, whose name is the process's: a named thread is always another.
func init() {
	if isHolder() {
		runtime.LockOSThread()
	}
}

// hold makes the state that spawn's orders ask for, reports, and stays for ever.
func hold() {
	report := os.NewFile(holdReport, "report")
	failure := ""
	if err := makeState(); err != nil {
		failure = err.Error()
	}
	json.NewEncoder(report).Encode(failure)
	report.Close()
	if failure != "" {
		os.Exit(1)
	}
	for {
		syscall.Pause()
	}
}

func makeState() error {
	orders := os.NewFile(holdOrders, "orders")
	var s wire.Spawn
	err := json.NewDecoder(orders).Decode(&s)
	orders.Close()
	if err != nil {
		return err
	}
	if s.Hostname != "" {
		if err := syscall.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("hostname: %w", err)
		}
	}
	h := s.Hold
	for _, step := range []struct {
		what  string
		items []string
		make  func(string) error
	}{
		{"mount", h.Mounts, mountTmpfs},
		{"file", h.Files, openFile},
		{"deleted file", h.Deleted, openDeleted},
		{"directory", h.Dirs, openDir},
		{"map", h.Maps, mapFile},
		{"kind", h.Kinds, openKind},
	} {
		for _, item := range step.items {
			if err := step.make(item); err != nil {
				return fmt.Errorf("%s %q: %w", step.what, item, err)
			}
		}
	}
	if err := openSockets(h); err != nil {
		return err
	}
	for range h.Anonymous {
		if err := mapAnonymous(); err != nil {
			return err
		}
	}
	for _, name := range h.Threads {
		startThread(name, func() { syscall.Pause() })
	}
	return nil
}

// startThread starts a thread that sleeps again and again, and returns once it bears its name.
func startThread(name []byte, sleep func()) {
	named := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		text := append(append([]byte{}, name...), 0)
		const prSetName = 15
		syscall.RawSyscall(syscall.SYS_PRCTL, prSetName, uintptr(unsafe.Pointer(&text[0])), 0)
		close(named)
		for {
			sleep()
		}
	}()
	<-named
}

// What follows opens descriptors with plain system calls: the os package would add an epoll descriptor of its own to
// the list that a test compares. None of them is ever closed.

func mountTmpfs(dir string) error {
	// Private first, so that nothing propagates to the namespace this one was copied from.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return syscall.Mount("held", dir, "tmpfs", 0, "")
}

func create(name string) (int, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return 0, err
	}
	return syscall.Open(name, syscall.O_RDWR|syscall.O_CREAT, 0o644)
}

func openFile(name string) error {
	_, err := create(name)
	return err
}

func openDeleted(name string) error {
	if _, err := create(name); err != nil {
		return err
	}
	return os.Remove(name)
}

func openDir(name string) error {
	_, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	return err
}

const page = 4096

var touched int

func mapFile(name string) error {
	fd, err := create(name)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := syscall.Ftruncate(fd, 2*page); err != nil {
		return err
	}
	for _, m := range []struct {
		at    int64
		flags int
	}{{0, syscall.MAP_SHARED}, {page, syscall.MAP_PRIVATE}} {
		mem, err := syscall.Mmap(fd, m.at, page, syscall.PROT_READ, m.flags)
		if err != nil {
			return err
		}
		touched += int(mem[0]) // so that it is in the page tables
	}
	return nil
}

// mapAnonymous maps three pages and takes the access to the outer two away, so that neighbours do not merge.
func mapAnonymous() error {
	mem, err := syscall.Mmap(-1, 0, 3*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	mem[page] = 1 // present
	if err := syscall.Mprotect(mem[:page], syscall.PROT_NONE); err != nil {
		return err
	}
	return syscall.Mprotect(mem[2*page:], syscall.PROT_NONE)
}

func openKind(kind string) error {
	var err error
	var fds [2]int
	var mask uint64
	name := []byte("held\x00")
	raw := func(number, a, b, c, d uintptr) error {
		if _, _, errno := syscall.Syscall6(number, a, b, c, d, 0, 0); errno != 0 {
			return errno
		}
		return nil
	}
	switch kind {
	case "pipe":
		err = syscall.Pipe2(fds[:], 0)
	case "socketpair":
		fds, err = syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	case "epoll":
		_, err = syscall.EpollCreate1(0)
	case "inotify":
		_, err = syscall.InotifyInit1(0)
	case "eventfd":
		err = raw(sysEventfd2, 0, 0, 0, 0)
	case "bpf":
		err = openBPF()
	case "socket waits":
		err = waitForSockets()
	case "memfd":
		err = raw(sysMemfdCreate, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
	case "timerfd":
		err = raw(sysTimerfdCreate, 1, 0, 0, 0) // CLOCK_MONOTONIC
	case "signalfd":
		err = raw(sysSignalfd4, ^uintptr(0), uintptr(unsafe.Pointer(&mask)), 8, 0)
	default:
		err = openCode(kind)
	}
	return err
}
