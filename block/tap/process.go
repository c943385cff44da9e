package tap

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/internal/hot"
	"vmscope/internal/ring"
)

// helperEnv marks the processes of a tap: the same program, started again. Its value is a job as JSON.
const helperEnv = "VMSCOPE_TAP_HELPER"

// helperKnown is set once main has called Helper.
var helperKnown atomic.Bool

// Helper must be called first thing in main by every program that taps disks. In the program itself it returns at once.
// Attach starts the same program again, as receiver and as guard, which work in here and exit. In a program that does not
// call it the receiver is a part of the program, and nothing guards it: who stops that program stops its guest's writes.
func Helper() {
	helperKnown.Store(true)
	text, ok := os.LookupEnv(helperEnv)
	if !ok {
		return
	}
	os.Unsetenv(helperEnv)
	// What ends the program must not end its helpers.
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGQUIT)
	os.Exit(help(text))
}

// job is what a helper is started for.
type job struct {
	Role string `json:"role"`
	Spec spec   `json:"spec"`
	// Guarded is the receiver that a guard is to take over; 0: it starts one.
	Guarded int `json:"guarded,omitempty"`
}

const (
	roleGuard    = "guard"
	roleReceiver = "receiver"
)

// kit are the files that all processes of a tap have. They are descriptors 3 and up, in this order.
type kit struct {
	ctl  *os.File
	ring ring.Files
	lock *os.File // nil: none
	ln   *os.File // nil: none

	alarm alarm // of the process itself
}

const firstFD = 3

// fds are their descriptors, and none for what is not there.
func (k *kit) fds(none *os.File) []uintptr {
	fd := func(f *os.File) uintptr {
		if f == nil {
			f = none
		}
		return f.Fd()
	}
	return []uintptr{fd(k.ctl), fd(k.ring.Memory), uintptr(k.ring.Wake), fd(k.lock), fd(k.ln)}
}

// inherited finds the kit of a helper.
func inherited() (kit, error) {
	const wake = 2
	var f [5]*os.File
	for i := range f {
		fd := firstFD + i
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return kit{}, fmt.Errorf("descriptor %d: %w", fd, err)
		}
		unix.CloseOnExec(fd)
		if i != wake && st.Mode&unix.S_IFMT != unix.S_IFCHR { // /dev/null stands for what is not there
			f[i] = os.NewFile(uintptr(fd), "inherited")
		}
	}
	if f[0] == nil || f[1] == nil {
		return kit{}, errors.New("files are missing")
	}
	return kit{ctl: f[0], ring: ring.Files{Memory: f[1], Wake: firstFD + wake}, lock: f[3], ln: f[4]}, nil
}

// spawn starts a helper, which the caller has to wait for.
func (k *kit) spawn(j job) (pid int, err error) {
	text, err := json.Marshal(j)
	if err != nil {
		return 0, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	fds := append([]uintptr{null.Fd(), null.Fd(), null.Fd()}, k.fds(null)...)
	env := []string{helperEnv + "=" + string(text)}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, helperEnv+"=") {
			env = append(env, e)
		}
	}
	argv := []string{"vmscope-" + j.Role, j.Spec.name()}
	pid, err = syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{
		Dir: "/", Env: env, Files: fds,
		Sys: &syscall.SysProcAttr{Setsid: true}, // out of reach of Ctrl-C
	})
	if err != nil {
		return 0, fmt.Errorf("start the %s: %w", j.Role, err)
	}
	return pid, nil
}

// help does a helper's work.
func help(text string) int {
	var j job
	k, err := inherited()
	if err == nil {
		err = json.Unmarshal([]byte(text), &j)
	}
	if err == nil {
		k.alarm, _ = newAlarm() // where that fails, the guard is there
		switch j.Role {
		case roleGuard:
			err = guard(&k, j)
		case roleReceiver:
			err = receive(&k, j)
		default:
			err = fmt.Errorf("no such role: %q", j.Role)
		}
	}
	if err != nil {
		return 1
	}
	return 0
}

// receive is the receiver's process.
func receive(k *kit, j job) error {
	r, err := newReceiver(j.Spec, k.ring, k.ctl)
	if err != nil {
		// Nobody can do better.
		(control{k.ctl}).send(pack(msgEnded, err))
		return err
	}
	r.ln, r.feed.alarm = k.ln, k.alarm
	hot.Dedicate()
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		r.end(errTerminated)
	}()
	go r.keepGuard(k, j.Spec)
	r.run(background)
	r.feed.ring.Finish()
	return nil
}

var errTerminated = errors.New("the receiver was told to end")

// state is the state of a process's main thread as of proc(5): 'T' for stopped; 0 if it is gone.
func state(pid int) byte { return stateOf("/proc/" + strconv.Itoa(pid) + "/stat") }

// stateOf reads the state from a stat file. What it needs comes first there.
func stateOf(path string) byte {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return 0
	}
	cwd := unix.AT_FDCWD
	fd, no := hot.Now(unix.SYS_OPENAT, uintptr(cwd), uintptr(unsafe.Pointer(name)), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
	if no != 0 {
		return 0
	}
	defer hot.Now(unix.SYS_CLOSE, fd, 0, 0, 0, 0, 0)
	var b [256]byte
	n, no := hot.Now(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&b)), uintptr(len(b)), 0, 0, 0)
	if no != 0 {
		return 0
	}
	s := b[:n]
	if i := bytes.LastIndexByte(s, ')'); i >= 0 && i+2 < len(s) {
		return s[i+2]
	}
	return 0
}

// busy reports whether any thread of a process would run if it got a processor, or waits for the host's disk: a receiver's
// other threads may have to wait for that (package hot), and to kill it would not make the disk faster.
func busy(pid int) bool {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, t := range tasks {
		if s := stateOf(dir + "/" + t.Name() + "/stat"); s == 'R' || s == 'D' {
			return true
		}
	}
	return false
}
