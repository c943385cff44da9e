// Odd holds open and mapped what is hard to name, says so, and waits for ever.
// The tests of package linux run it in their guests.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

// Numbers that package syscall lacks.
const (
	prSetVMA = 0x53564d41
	oPath    = 0x200000
	oTmpfile = 0x410000
)

// must ends the program if something failed that every kernel can do.
func must(what string, err error) {
	if err != nil {
		fmt.Println("FAIL", what, err)
		os.Exit(1)
	}
}

func cstr(s string) uintptr {
	b := append([]byte(s), 0)
	return uintptr(unsafe.Pointer(&b[0]))
}

func open(name string, flags int) int {
	fd, err := syscall.Open(name, flags, 0o640)
	must(name, err)
	return fd
}

func call(what string, nr uintptr, args ...uintptr) uintptr {
	var a [6]uintptr
	copy(a[:], args)
	r, _, e := syscall.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		must(what, e)
	}
	return r
}

// mmap maps n pages; fd -1 is memory without a file.
func mmap(prot, flags, fd, offset int, pages uintptr) uintptr {
	if fd < 0 {
		flags |= syscall.MAP_ANON
	}
	return mmapCall(pages*4096, uintptr(prot), uintptr(flags), uintptr(fd), uintptr(offset))
}

func files(dir string) {
	must("mkdir", os.MkdirAll(dir, 0o755))
	must("chdir", os.Chdir(dir))

	// Names: the longest, one line break, no UTF-8, blank, one that looks deleted.
	for _, name := range []string{strings.Repeat("n", 255), "line\nbreak", "\xff\xfe", " ", "x (deleted)", `back\slash`} {
		open(name, syscall.O_RDWR|syscall.O_CREAT)
	}
	fd := open("seek", syscall.O_WRONLY|syscall.O_CREAT|syscall.O_APPEND|syscall.O_CLOEXEC)
	must("write", ignore(syscall.Write(fd, make([]byte, 12345))))
	_, err := syscall.Seek(open("seek", syscall.O_RDONLY), 777, 0)
	must("seek", err)
	open("seek", oPath)

	// Removed, also below a directory that was removed, and one without a name.
	must("mkdir", os.Mkdir("gone", 0o755))
	open("gone", syscall.O_DIRECTORY)
	open("gone/file", syscall.O_RDWR|syscall.O_CREAT)
	must("remove", os.RemoveAll("gone"))
	if fd, err := syscall.Open(".", oTmpfile|syscall.O_RDWR, 0o600); err == nil {
		call("dup", syscall.SYS_DUP, uintptr(fd))
	}
	// Renamed while open.
	open("before", syscall.O_RDWR|syscall.O_CREAT)
	must("rename", os.Rename("before", "after"))

	// Deeper than PATH_MAX.
	must("mkdir", os.Mkdir("deep", 0o755))
	must("chdir", os.Chdir("deep"))
	part := strings.Repeat("d", 200)
	for i := range 30 {
		must("mkdir", os.Mkdir(part, 0o755))
		must("chdir", os.Chdir(part))
		if i%6 == 0 {
			open("leaf", syscall.O_RDWR|syscall.O_CREAT)
		}
	}
	must("chdir", os.Chdir("/"))

	// What is in no directory.
	call("memfd", sysMemfdCreate, cstr("a/b \n"), 0)
	call("memfd", sysMemfdCreate, cstr(""), 1)
	call("pidfd", sysPidfdOpen, uintptr(os.Getpid()), 0)
	for _, ns := range []string{"net", "mnt", "pid", "uts", "ipc", "user", "cgroup"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err == nil {
			open("/proc/self/ns/"+ns, syscall.O_RDONLY)
		}
	}
	var p [2]int
	must("pipe", syscall.Pipe(p[:]))
	p, err = syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET, 0)
	must("socketpair", err)
	call("eventfd", syscall.SYS_EVENTFD2, 0, 0)
	call("epoll", syscall.SYS_EPOLL_CREATE1, 0)
	call("inotify", syscall.SYS_INOTIFY_INIT1, 0)
	call("timerfd", syscall.SYS_TIMERFD_CREATE, 1, 0)
	var mask uint64
	call("signalfd", syscall.SYS_SIGNALFD4, ^uintptr(0), uintptr(unsafe.Pointer(&mask)), 8, 0)

	// Devices, kernel files, directories of many file systems.
	for _, name := range []string{"/dev/null", "/dev/zero", "/proc/self/maps", "/proc/1/status", "/sys/kernel/uevent_seqnum", "/dev/kmsg"} {
		open(name, syscall.O_RDONLY)
	}
	for _, name := range []string{"/dev/ptmx", "/dev/pts/0", "/dev/tty0", "/dev/net/tun"} {
		syscall.Open(name, syscall.O_RDWR|syscall.O_NOCTTY, 0)
	}
	for _, name := range []string{"/", "/proc", "/sys", "/dev", "/tmp", "/proc/self/task"} {
		open(name, syscall.O_DIRECTORY)
	}
	// Mounts: bound onto themselves, onto a file, over one another.
	for _, name := range os.Args[2:] {
		syscall.Open(name, syscall.O_RDONLY, 0)
	}
	// A number beyond the first table, and holes between.
	lim := syscall.Rlimit{Cur: 70000, Max: 70000}
	must("rlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim))
	for _, n := range []int{200, 1023, 1024, 4097, 65537} {
		must("dup", syscall.Dup3(fd, n, 0))
	}
}

func ignore(_ int, err error) error { return err }

func maps(dir string) {
	name := dir + "/mapped\nfile"
	fd := open(name, syscall.O_RDWR|syscall.O_CREAT)
	must("truncate", syscall.Ftruncate(fd, 1<<20))
	mmap(syscall.PROT_READ, syscall.MAP_SHARED, fd, 0, 1)
	mmap(syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE, fd, 4096, 2)
	mmap(syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED, fd, 4096*16, 3)
	mmap(syscall.PROT_EXEC|syscall.PROT_READ, syscall.MAP_PRIVATE, fd, 4096*5, 1)
	mmap(0, syscall.MAP_PRIVATE, fd, 0, 1)

	gone := dir + "/mapped gone"
	fd = open(gone, syscall.O_RDWR|syscall.O_CREAT)
	must("truncate", syscall.Ftruncate(fd, 8192))
	mmap(syscall.PROT_READ, syscall.MAP_SHARED, fd, 0, 2)
	must("remove", os.Remove(gone))

	m := call("memfd", sysMemfdCreate, cstr("mapped"), 0)
	must("truncate", syscall.Ftruncate(int(m), 8192))
	mmap(syscall.PROT_READ, syscall.MAP_SHARED, int(m), 0, 2)
	named := mmap(syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED, -1, 0, 4) // /dev/zero (deleted)
	syscall.Syscall6(syscall.SYS_PRCTL, prSetVMA, 0, named, 4*4096, cstr("shared name"), 0)
	zero := open("/dev/zero", syscall.O_RDWR)
	mmap(syscall.PROT_READ, syscall.MAP_PRIVATE, zero, 0, 3)
	mmap(syscall.PROT_READ, syscall.MAP_SHARED, zero, 0, 5)
	sharedMemory(0x1234, 8192, 0o1600)
	named = mmap(syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE, -1, 0, 4)
	syscall.Syscall6(syscall.SYS_PRCTL, prSetVMA, 0, named, 4*4096, cstr("a name given"), 0)

	// A heap, then holes in a long run of areas: a tree of several levels.
	brk, _, _ := syscall.Syscall(syscall.SYS_BRK, 0, 0, 0)
	syscall.Syscall(syscall.SYS_BRK, brk+5*4096, 0, 0)
	run := mmap(syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE, -1, 0, 2000)
	for i := uintptr(0); i < 2000; i += 4 {
		call("mprotect", syscall.SYS_MPROTECT, run+i*4096, 4096, syscall.PROT_READ)
		if i%40 == 0 {
			call("munmap", syscall.SYS_MUNMAP, run+(i+2)*4096, 4096)
		}
	}
}

func main() {
	dir := os.Args[1]
	if dir == "root" { // a root directory of its own
		must("chroot", syscall.Chroot(os.Args[2]))
		must("chdir", os.Chdir("/"))
		open("/inside", syscall.O_RDWR|syscall.O_CREAT)
	} else {
		files(dir)
		maps(dir)
	}
	fmt.Println("READY")
	os.Stdout.Close()
	for {
		syscall.Pause()
	}
}
