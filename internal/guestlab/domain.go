package guestlab

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// errNoDomain says that libvirt is there but starts no guest of the lab: its QEMU may be kept from the lab's files.
var errNoDomain = errors.New("libvirt does not start a domain")

// Virsh runs virsh at the libvirt that starts domains of the lab: the system's for root, else the user's own.
func Virsh(ctx context.Context, args ...string) (string, error) {
	uri := "qemu:///session"
	if os.Geteuid() == 0 {
		uri = "qemu:///system"
	}
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"--quiet", "--connect", uri}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return virsh(cmd, args)
}

func virsh(cmd *exec.Cmd, args []string) (string, error) {
	out, err := cmd.CombinedOutput()
	out = bytes.TrimSpace(out)
	if err != nil {
		err = fmt.Errorf("virsh %s: %w: %s", args[0], err, out)
	}
	return string(out), err
}

// domainXML describes a guest to libvirt (formatdomain.html).
const domainXML = `<domain type='qemu'>
<name>%s</name><memory unit='MiB'>%d</memory><vcpu>%d</vcpu>
<os><type arch='x86_64' machine='%s'>hvm</type><kernel>%s</kernel><initrd>%s</initrd><cmdline>%s</cmdline></os>
<features><acpi/></features>
<cpu mode='custom' match='exact' check='none'><model>%s</model><feature policy='disable' name='cx16'/></cpu>
<on_reboot>destroy</on_reboot>
<devices><emulator>%s</emulator>
%s<serial type='file'><source path='%s'/></serial>
<channel type='unix'><source mode='bind' path='%s'/><target type='virtio' name='%s'/></channel>
<memballoon model='none'/></devices>
</domain>
`

const domainDisk = `<disk type='file' device='disk'><driver name='qemu' type='%s' discard='unmap'/><source file='%s'/>
<target dev='vd%c' bus='virtio'/><serial>%s</serial></disk>
`

// domain is the guest for libvirt. What of Config has no place in it is refused.
func (c *Config) domain(emulator, image string, d runDir) (string, error) {
	if c.Disk != "" || len(c.QEMUArgs) > 0 || c.RAM != SharedFile || len(c.Disks) > 26 {
		return "", fmt.Errorf("guestlab: guest %s: no domain of libvirt: %w", c.Name, errors.ErrUnsupported)
	}
	var disks strings.Builder
	for i, k := range c.Disks {
		if k.Bus != buses[0] || k.Log != "" || k.FileOptions != "" || k.DeviceOptions != "" {
			return "", fmt.Errorf("guestlab: disk %+v: no domain of libvirt: %w", k, errors.ErrUnsupported)
		}
		fmt.Fprintf(&disks, domainDisk, k.Format, escape(k.Path), 'a'+i, k.ID)
	}
	return fmt.Sprintf(domainXML, c.Name, c.MemoryMiB, c.CPUs, c.Machine, escape(image), escape(d.initrd()),
		escape(c.commandLine()), c.CPUModel, escape(emulator), disks.String(),
		escape(d.consoleLog()), escape(d.agentSocket()), agentPort), nil
}

func escape(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s))
	return b.String()
}

// create has libvirt start QEMU, as a domain that is gone when it ends. Unlike a QEMU of our own it outlives a program that
// is killed.
func (g *Guest) create(ctx context.Context) error {
	err := g.createDomain(ctx)
	if err != nil {
		close(g.exited)
	}
	return err
}

func (g *Guest) createDomain(ctx context.Context) error {
	emulator, err := exec.LookPath(qemu)
	if err != nil {
		return err
	}
	image := g.kernel.Image()
	if d := g.cfg.Daemon; d != nil {
		if image, err = d.lend(g.dir.path, image); err != nil {
			return err
		}
	}
	text, err := g.cfg.domain(emulator, image, g.dir)
	if err != nil {
		return err
	}
	path := filepath.Join(g.dir.path, "domain.xml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	if d := g.cfg.Daemon; d != nil {
		if err := d.own(path); err != nil {
			return err
		}
	}
	if _, err := g.virsh(ctx, "create", path); err != nil {
		return fmt.Errorf("%w: %w", errNoDomain, err)
	}
	pid, err := domainPID(g.cfg.Name)
	fd := -1
	if err == nil {
		fd, err = unix.PidfdOpen(pid, 0)
	}
	if err != nil {
		g.destroy()
		return err
	}
	g.pid = pid
	go func() {
		defer close(g.exited)
		defer unix.Close(fd)
		for err := error(unix.EINTR); err == unix.EINTR; {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		}
	}()
	return nil
}

// virsh runs virsh at the libvirt that has the guest.
func (g *Guest) virsh(ctx context.Context, args ...string) (string, error) {
	if g.cfg.Daemon != nil {
		return g.cfg.Daemon.Virsh(ctx, args...)
	}
	return Virsh(ctx, args...)
}

// destroy ends the domain.
func (g *Guest) destroy() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := g.virsh(ctx, "destroy", g.cfg.Name); err != nil && g.pid != 0 {
		unix.Kill(g.pid, unix.SIGKILL)
	}
}

// domainPID finds the QEMU that libvirt started for a domain by its command line.
func domainPID(name string) (int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, path := range all {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte("\x00guest="+name+",")) {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, fmt.Errorf("guestlab: domain %s has no process", name)
}
