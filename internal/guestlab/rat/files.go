package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"vmscope/internal/guestlab/wire"
)

func tellFDs(tell func(any), pid int) error {
	list, err := pids(pid)
	if err != nil {
		return err
	}
	for _, pid := range list {
		fds, err := numbers(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			continue // ended
		}
		for _, n := range fds {
			name := fmt.Sprintf("/proc/%d/fd/%d", pid, n)
			target, err := os.Readlink(name)
			if err != nil {
				continue // closed meanwhile, as the descriptor that lists this directory is
			}
			fd := wire.FD{PID: pid, FD: n, Link: []byte(target)}
			info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, n))
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(info)) {
				key, value, _ := strings.Cut(line, ":")
				value = strings.TrimSpace(value)
				switch key {
				case "pos":
					fd.Pos, _ = strconv.ParseInt(value, 10, 64)
				case "flags":
					fd.Flags, _ = strconv.ParseUint(value, 8, 64)
				case "mnt_id":
					fd.MountID, _ = strconv.Atoi(value)
				}
			}
			var st syscall.Stat_t
			if syscall.Stat(name, &st) == nil {
				fd.Dev, fd.Inode, fd.Mode = st.Dev, st.Ino, st.Mode
			}
			tell(fd)
		}
	}
	return nil
}

func tellMaps(tell func(any), pid int) error {
	list, err := pids(pid)
	if err != nil {
		return err
	}
	for _, pid := range list {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			continue // ended
		}
		for line := range strings.Lines(string(text)) {
			m, err := mapping(strings.TrimSuffix(line, "\n"))
			if err != nil {
				return err
			}
			m.PID = pid
			tell(m)
		}
	}
	return nil
}

// mapping reads "start-end perms offset major:minor inode     path".
func mapping(line string) (m wire.Mapping, err error) {
	var path string
	f := strings.SplitN(line, " ", 6)
	if len(f) == 6 {
		path = strings.TrimLeft(f[5], " ") // padding; a path begins with a slash or bracket
	}
	if len(f) >= 5 {
		_, err = fmt.Sscanf(strings.Join(f[:5], " "), "%x-%x %s %x %x:%x %d", &m.Start, &m.End, &m.Perms, &m.Offset, &m.Major, &m.Minor, &m.Inode)
	} else {
		err = fmt.Errorf("line %q", line)
	}
	if path != "" {
		// Only a newline is escaped here (seq_file_path(m, file, "\n") in fs/proc/task_mmu.c).
		m.Path = []byte(strings.ReplaceAll(path, `\012`, "\n"))
	}
	return m, err
}

func tellMounts(tell func(any), pid int) error {
	who := "self"
	if pid != 0 {
		who = strconv.Itoa(pid)
	}
	text, err := os.ReadFile("/proc/" + who + "/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		before, after, ok := strings.Cut(line, " - ")
		f, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(rest) < 2 {
			return fmt.Errorf("mountinfo line %q", line)
		}
		m := wire.Mount{Dev: f[2], Root: unescape(f[3]), Target: unescape(f[4]), Options: f[5], Optional: f[6:], FSType: rest[0]}
		m.ID, _ = strconv.Atoi(f[0])
		m.Parent, _ = strconv.Atoi(f[1])
		if len(rest) == 2 { // an empty source leaves nothing between two spaces
			m.Super = rest[1]
		} else {
			m.Source, m.Super = unescape(rest[1]), rest[2]
		}
		tell(m)
	}
	return nil
}

// unescape turns the \ooo of mountinfo back into bytes.
func unescape(s string) []byte {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b = append(b, byte(n))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return b
}
