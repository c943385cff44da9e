package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"vmscope/internal/guestlab/wire"
)

func tellModules(tell func(any), _ int) error {
	text, err := os.ReadFile("/proc/modules")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line) // name size refs users, state address (taint)
		if len(f) < 6 {
			continue
		}
		m := wire.Module{Name: f[0], State: f[4], Sections: sections(f[0])}
		m.Size, _ = strconv.ParseUint(f[1], 10, 64)
		m.Refs, _ = strconv.Atoi(f[2])
		for _, user := range strings.Split(f[3], ",") {
			if user != "" && user != "-" {
				m.UsedBy = append(m.UsedBy, user)
			}
		}
		m.Addr, _ = strconv.ParseUint(f[5], 0, 64)
		if len(f) > 6 {
			m.Taint = strings.Trim(f[6], "()")
		}
		tell(m)
	}
	return nil
}

func sections(module string) map[string]uint64 {
	dir := "/sys/module/" + module + "/sections/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	found := map[string]uint64{}
	for _, e := range entries {
		text, err := os.ReadFile(dir + e.Name())
		if err != nil {
			continue
		}
		if addr, err := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 64); err == nil {
			found[e.Name()] = addr
		}
	}
	return found
}

// tellLog reads the kernel's log: each read of /dev/kmsg gives one record.
func tellLog(tell func(any), _ int) error {
	fd, err := syscall.Open("/dev/kmsg", syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	buf := make([]byte, 64<<10)
	for {
		n, err := syscall.Read(fd, buf)
		switch err {
		case nil:
			if rec, ok := logRecord(string(buf[:n])); ok {
				tell(rec)
			}
		case syscall.EAGAIN:
			return nil
		case syscall.EPIPE, syscall.EINTR: // records were overwritten; the next read goes on behind them
		default:
			return err
		}
	}
}

// logRecord reads "priority,sequence,microseconds,flags[,…];text\n KEY=value\n…".
func logRecord(text string) (rec wire.LogRecord, ok bool) {
	prefix, rest, ok := strings.Cut(text, ";")
	f := strings.Split(prefix, ",")
	if !ok || len(f) < 3 {
		return rec, false
	}
	prio, _ := strconv.Atoi(f[0])
	rec.Level, rec.Facility = prio&7, prio>>3
	rec.Seq, _ = strconv.ParseUint(f[1], 10, 64)
	rec.Usec, _ = strconv.ParseUint(f[2], 10, 64)
	line, dict, _ := strings.Cut(rest, "\n")
	rec.Text = unescapeHex(line)
	for d := range strings.Lines(dict) {
		if key, value, ok := strings.Cut(strings.TrimSpace(d), "="); ok {
			if rec.Dict == nil {
				rec.Dict = map[string]string{}
			}
			rec.Dict[key] = value
		}
	}
	return rec, true
}

// unescapeHex turns the \xNN of /dev/kmsg back into bytes.
func unescapeHex(s string) []byte {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b = append(b, byte(n))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return b
}

func tellSystem(tell func(any), _ int) error {
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return err
	}
	s := wire.System{
		Sysname: cstring(u.Sysname[:]), Nodename: cstring(u.Nodename[:]), Release: cstring(u.Release[:]),
		Version: cstring(u.Version[:]), Machine: cstring(u.Machine[:]),
		Cmdline: text("/proc/cmdline"), Banner: text("/proc/version"), BootID: text("/proc/sys/kernel/random/boot_id"),
		Jiffies: jiffies(), Realtime: clock(0), Monotone: clock(1), Boottime: clock(7),
	}
	tell(s)
	return nil
}

func cstring[C int8 | uint8](chars []C) string {
	var b []byte
	for _, c := range chars {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

func text(name string) string {
	data, _ := os.ReadFile(name)
	return strings.TrimSuffix(string(data), "\n")
}

func clock(id uintptr) int64 {
	var ts syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}

func jiffies() uint64 {
	list, _ := os.ReadFile("/proc/timer_list")
	for line := range strings.Lines(string(list)) {
		if value, ok := strings.CutPrefix(line, "jiffies:"); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			return n
		}
	}
	return 0
}
