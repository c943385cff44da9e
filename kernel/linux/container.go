package linux

import (
	"strconv"
	"strings"

	"vmscope/kernel"
)

// containerOf tells the container of a process in the given cgroups: by the
// first hierarchy whose path names one.
func containerOf(groups []CGroup) kernel.Text {
	for _, g := range groups {
		if c := containerID(string(g.Path)); c != "" {
			return kernel.Text(c)
		}
	}
	return ""
}

// containerID finds the container that a cgroup path belongs to: its id where
// the runtime gives ids (Docker, containerd, CRI-O, Podman), else its name (LXC,
// LXD, systemd-nspawn). The innermost one counts, so that a process of
// Kubernetes in Docker gets its pod's. It is "" on the host itself, and for the
// monitors that run beside a container.
//
// The guest chose the path, and no kernel object is a container: the answer is
// what runtimes use by convention.
func containerID(path string) string {
	path = strings.TrimSuffix(path, " (deleted)")
	parts := strings.Split(path, "/")
	for i := len(parts) - 1; i > 0; i-- {
		before := parts[i-1]
		if i == 1 {
			before = ""
		}
		id, known := containerPart(parts[i], before)
		if known {
			return id
		}
	}
	return ""
}

// The prefixes of scopes and cgroups that runtimes put before an id.
var idPrefixes = []string{
	"docker-", "cri-containerd-", "containerd-", "crio-", "libpod-", "nerdctl-", "podman-", "buildah-", "cri-dockerd-",
}

// containerPart tells what one component of a path, below another, says. known
// is true with an empty id where it says that this is no container.
func containerPart(s, above string) (id string, known bool) {
	name, scope := strings.CutSuffix(s, ".scope")

	// Monitors: conmon of Podman and CRI-O, lxc-start.
	for _, p := range []string{"libpod-conmon-", "crio-conmon-", "lxc.monitor"} {
		if strings.HasPrefix(name, p) {
			return "", true
		}
	}
	for _, p := range idPrefixes {
		if rest, ok := strings.CutPrefix(name, p); ok && (isID(rest) || rest != "" && scope && isHex(rest)) {
			return rest, true
		}
	}
	switch {
	case isID(s): // /docker/ID, /kubepods/…/podUID/ID, /ecs/TASK/ID, /actions_job/ID
		return s, true
	case strings.Contains(s, ":"): // systemd's notation given to cgroupfs: SLICE:cri-containerd:ID
		f := strings.Split(s, ":")
		if last := f[len(f)-1]; len(f) == 3 && isID(last) {
			return last, true
		}
	case strings.HasPrefix(s, "lxc.payload."): // LXC 4, LXD, Incus
		return s[len("lxc.payload."):], true
	case above == "lxc.payload" || above == "lxc":
		return s, s != ""
	case isECS(s, above):
		return s, true
	case scope && strings.HasPrefix(name, "machine-"): // machinectl: nspawn, libvirt
		return machine(name[len("machine-"):])
	}
	if unit, ok := strings.CutPrefix(s, "systemd-nspawn@"); ok {
		if unit, ok = strings.CutSuffix(unit, ".service"); ok {
			return unescapeUnit(unit), true
		}
	}
	return "", false
}

// machine reads the name of a machine scope. libvirt registers "qemu-3-web"
// and "lxc-3-web"; a virtual machine is no container.
func machine(s string) (id string, known bool) {
	s = unescapeUnit(s)
	if strings.HasPrefix(s, "qemu-") {
		return "", true
	}
	if rest, ok := strings.CutPrefix(s, "lxc-"); ok {
		if pid, name, ok := strings.Cut(rest, "-"); ok && isDecimal(pid) {
			return name, true
		}
	}
	return s, s != ""
}

// isID reports whether s looks like an id as runtimes make them: 64 hexadecimal
// digits.
func isID(s string) bool { return len(s) == 64 && isHex(s) }

func isHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) >= 12
}

func isDecimal(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// isECS knows the ids of Amazon ECS: 32 hexadecimal digits of the task, a dash,
// and a number, below a cgroup of the task.
func isECS(s, above string) bool {
	task, n, ok := strings.Cut(s, "-")
	return ok && len(task) == 32 && isHex(task) && isDecimal(n) && above == task
}

// unescapeUnit undoes systemd's escaping in unit names: \xNN
// (systemd-escape(1)). The dash for a slash is left: machine names have none.
func unescapeUnit(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.HasPrefix(s[i:], `\x`) && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
