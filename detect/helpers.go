package detect

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"vmscope/kernel"
)

// helper is a variable of the kernel that names a program which the kernel
// starts by itself, as root.
type helper struct {
	symbol string
	usual  []string // how distributions set it; "" is none at all
}

var helpers = []helper{
	{"modprobe_path", []string{"", "/sbin/modprobe", "/bin/modprobe", "/usr/sbin/modprobe", "/usr/bin/modprobe", "/run/current-system/sw/bin/modprobe", "/bin/true", "/bin/false"}},
	{"core_pattern", []string{"/lib/systemd/systemd-coredump", "/usr/lib/systemd/systemd-coredump", "/usr/share/apport/apport", "/usr/libexec/abrt-hook-ccpp", "/usr/bin/false", "/bin/false"}},
	{"poweroff_cmd", []string{"", "/sbin/poweroff", "/bin/poweroff", "/usr/sbin/poweroff", "/usr/bin/poweroff"}},
	{"reboot_cmd", []string{"", "/sbin/reboot"}},
	{"uevent_helper", []string{"", "/sbin/hotplug", "/sbin/mdev", "/bin/mdev"}},
}

// anybodys are directories that users may write to, or name each other's files
// by: no system keeps a helper of the kernel there.
var anybodys = []string{"/tmp/", "/var/tmp/", "/dev/", "/proc/", "/home/", "/run/user/", "/run/lock/"}

// usermodeHelpers looks at the programs that the kernel starts. What the kernel
// was built with is not known; what no distribution has is inventory, and in a
// directory of anybody's a way that exploits take.
func usermodeHelpers(l *Look, report func(Finding)) error {
	var errs []error
	for _, h := range helpers {
		syms := l.Symbols.LookupAll(h.symbol)
		if len(syms) != 1 {
			continue // not there, or not known which
		}
		at := syms[0].Addr
		b, err := l.Mem.CString(at, 256) // KMOD_PATH_LEN and the like
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", h.symbol, err))
			continue
		}
		program := string(b)
		if h.symbol == "core_pattern" {
			// Else it is the name of a file, which the dying process writes.
			command, piped := strings.CutPrefix(program, "|")
			if !piped {
				continue
			}
			program, _, _ = strings.Cut(strings.TrimLeft(command, " "), " ")
		}
		if slices.Contains(h.usual, program) {
			continue
		}
		f := Finding{Check: "hooks", Severity: Info, Confidence: Possible,
			Summary:  fmt.Sprintf("the kernel starts %q by itself (%s)", kernel.Text(program), h.symbol),
			Evidence: []Evidence{{What: h.symbol, Addr: at, Symbol: h.symbol, Owner: "the kernel", Expected: "a program that distributions set, such as " + h.usual[len(h.usual)-1], Found: string(b)}}}
		if !strings.HasPrefix(program, "/") || slices.ContainsFunc(anybodys, func(dir string) bool { return strings.HasPrefix(path.Clean(program), dir) }) {
			f.Severity = Medium
			f.Summary += ", which lies where anybody may write"
		}
		f.identify(h.symbol, program)
		report(f)
	}
	return errors.Join(errs...)
}
