package vhostuser

import (
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/internal/hot"
)

// watch makes the descriptors that the goroutine waits on.
func (r *run) watch() (err error) {
	if r.alarm, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if r.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	add := func(fd int, flags uint32) error {
		return unix.EpollCtl(r.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | flags, Fd: int32(fd)})
	}
	if err := add(r.alarm, 0); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	if r.kick < 0 {
		return nil
	}
	if hot.Dedicated() {
		if r.bell, err = hot.NewBell(r.poll); err != nil {
			return err
		}
	}
	if r.relief, err = hot.NewBell(r.poll); err != nil {
		return err
	}
	// Each kick of an eventfd is an edge: it need not be read to be seen again, which saves a system call for each wait.
	name, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.kick))
	edge := uint32(unix.EPOLLET)
	if name != "anon_inode:[eventfd]" {
		r.drain, edge = true, 0
	}
	if err := add(r.kick, edge); err != nil {
		return fmt.Errorf("epoll on the kick descriptor: %w", err)
	}
	return nil
}

// wake makes the goroutine look around.
func (r *run) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		ring8(r.alarm)
	}
}

// ring8 adds one to an eventfd, or writes to a pipe that stands for one. If it is full, the other side has yet to look.
func ring8(fd int) {
	one := [8]byte{1}
	hot.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), 8, 0, 0, 0)
}

// wait sleeps until there may be something to do.
func (r *run) wait() error {
	if !r.listen() {
		return nil
	}
	return r.sleep()
}

// pollEvery is how often a ring is looked at whose front end gave no descriptor to kick by.
const pollEvery = 1 // ms

func (r *run) sleep() error {
	timeout := -1
	switch {
	case r.kick < 0:
		timeout = pollEvery
	case r.bell != nil:
		timeout = int(hot.Wait / time.Millisecond)
	}
	return r.take(timeout)
}

// take waits for at most so many ms, or for ever, and takes note of what woke it.
func (r *run) take(timeout int) error {
	var ev [2]unix.EpollEvent
	for {
		n, no := hot.Syscall(unix.SYS_EPOLL_PWAIT, uintptr(r.poll), uintptr(unsafe.Pointer(&ev)), uintptr(len(ev)), uintptr(timeout), 0, 0)
		if timeout > 0 && r.bell != nil && (no == unix.EINTR || no == 0 && n == 0) {
			// The runtime wants this goroutine to stop, or nothing came for a while.
			if err := r.bell.Wait(); err != nil {
				return err
			}
			continue
		}
		if no == unix.EINTR {
			continue
		}
		if no != 0 {
			return fmt.Errorf("epoll: %w", no)
		}
		for _, e := range ev[:n] {
			var b [8]byte
			if int(e.Fd) == r.alarm || r.drain {
				hot.Syscall(unix.SYS_READ, uintptr(e.Fd), uintptr(unsafe.Pointer(&b)), 8, 0, 0, 0)
			}
		}
		if r.halt.Load() {
			return errStopped
		}
		return nil
	}
}
