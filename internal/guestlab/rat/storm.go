package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// storm runs shells that fork, and fork and exec, as fast as they can.
func storm(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: rat storm N SECONDS")
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	length, err := seconds(args[1])
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "storm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	leaf := filepath.Join(dir, "leaf")
	if err := os.WriteFile(leaf, tinyELF(exitCode), 0o755); err != nil {
		return err
	}
	for range n {
		cmd := exec.Command("/bin/sh", "-c", "while :; do ( : ); "+leaf+"; done")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return err
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
	}
	time.Sleep(length)
	return nil
}

func seconds(text string) (time.Duration, error) {
	n, err := strconv.ParseFloat(text, 64)
	return time.Duration(n * float64(time.Second)), err
}

// modstorm loads and unloads the modules, one after the other, and says at the end how often.
func modstorm(w io.Writer, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: rat modstorm SECONDS NAME…")
	}
	length, err := seconds(args[0])
	if err != nil {
		return err
	}
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return err
	}
	dir := "/lib/modules/" + cstring(u.Release[:]) + "/"
	loads := 0
	for end := time.Now().Add(length); time.Now().Before(end); {
		for _, name := range args[1:] {
			if err := loadModule(dir + name + ".ko"); err != nil {
				return fmt.Errorf("load %s: %w", name, err)
			}
			loads++
			if err := unloadModule(name); err != nil {
				return fmt.Errorf("unload %s: %w", name, err)
			}
		}
	}
	_, err = fmt.Fprintln(w, loads)
	return err
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var none [1]byte // no parameters
	if _, _, errno := syscall.Syscall(sysFinitModule, f.Fd(), uintptr(unsafe.Pointer(&none[0])), 0); errno != 0 {
		return errno
	}
	return nil
}

// unloadModule tries for a while: something may just be using the module, such as udev or a device being set up.
func unloadModule(name string) error {
	text, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	for range 100 {
		_, _, errno := syscall.Syscall(syscall.SYS_DELETE_MODULE, uintptr(unsafe.Pointer(text)), syscall.O_NONBLOCK, 0)
		switch errno {
		case 0:
			return nil
		case syscall.EAGAIN, syscall.EBUSY:
			time.Sleep(10 * time.Millisecond)
		default:
			return errno
		}
	}
	return syscall.EBUSY
}
