package guestlab

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// bootModules are loaded in every guest, where the kernel does not have them built in. loop and bridge (which brings
// stp and llc) are there so that the module list has references and users; crc32c_generic is asked for by ext4 at run
// time without being a dependency.
var bootModules = []string{"virtio_pci", "virtio_console", "virtio_blk", "loop", "bridge", "crc32c_generic", "ext4"}

// spareModules lie in every guest unloaded, for tests that load and unload: modprobe finds them.
var spareModules = []string{"dummy", "ifb", "macvlan", "veth", "tun"}

// inittab keeps the agent and a shell on the serial console running. Its own process is busybox init, which reaps.
const inittab = `::sysinit:/etc/rc
::respawn:/bin/rat agent
CONSOLE::respawn:-/bin/sh
::ctrlaltdel:/bin/reboot
`

const rc = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup || {
	mount -t tmpfs tmpfs /sys/fs/cgroup
	mkdir /sys/fs/cgroup/pids
	mount -t cgroup -o pids pids /sys/fs/cgroup/pids
}
hostname -F /etc/hostname
ip link set lo up
while read -r m; do insmod "/lib/modules/$(uname -r)/$m.ko" || echo "module $m did not load"; done </etc/modules
`

const profile = `export PATH=/bin HOME=/root PS1='\h:\w# ' TERM=vt102
cd /root
`

// An initramfs is a system's first and, disks aside, only root file system.
type initramfs struct {
	kernel  *Kernel
	rat     string   // path of the helper
	name    string   // of the host
	modules []string // to load at boot, beside the usual ones
	spare   []string // to lie there unloaded, beside the usual ones
	inittab string
	rc      string                    // more commands at boot, behind the usual ones
	more    func(c *cpioWriter) error // more files; nil: none
}

// writeInitramfs writes a guest's.
func writeInitramfs(w io.Writer, k *Kernel, cfg *Config, rat string) error {
	modules := slices.Clone(cfg.Modules)
	for i := range cfg.Disks {
		modules = append(modules, cfg.Disks[i].modules()...)
	}
	root := initramfs{kernel: k, rat: rat, name: cfg.Name, modules: modules, inittab: strings.ReplaceAll(inittab, "CONSOLE", cfg.platform.console)}
	root.more = func(c *cpioWriter) error { return c.copyAll(cfg.Files) }
	return root.write(w)
}

func (r *initramfs) write(w io.Writer) error {
	k := r.kernel
	tree, err := openModules(k.ModuleDir())
	if err != nil {
		return err
	}
	boot, err := tree.closure(slices.Concat(bootModules, r.modules))
	if err != nil {
		return err
	}
	all, err := tree.closure(slices.Concat(names(boot), spareModules, r.spare))
	if err != nil {
		return err
	}
	c := newCpio(w)
	for _, d := range []string{"proc", "sys", "run", "mnt", "usr/bin"} {
		c.dir(d, 0o755)
	}
	c.dir("tmp", 0o777)
	c.dir("root", 0o700)
	c.charDevice("dev/console", 0o600, 5, 1) // init's stdin, stdout and stderr
	c.charDevice("dev/null", 0o666, 1, 3)
	if err := errors.Join(c.copy("bin/busybox", k.Busybox(), 0o755), c.copy("bin/rat", r.rat, 0o755)); err != nil {
		return err
	}
	c.symlink("init", "bin/busybox")
	c.symlink("bin/sh", "busybox")
	c.file("etc/inittab", 0o644, []byte(r.inittab))
	c.file("etc/rc", 0o755, []byte(rc+r.rc))
	c.file("etc/profile", 0o644, []byte(profile))
	c.file("etc/hostname", 0o644, []byte(r.name+"\n"))
	c.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:Alice:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"))
	c.file("etc/group", 0o644, []byte("root:x:0:\nalice:x:1000:\nnogroup:x:65534:\n"))
	c.file("etc/modules", 0o644, []byte(strings.Join(names(boot), "\n")+"\n"))

	dir := "lib/modules/" + k.Release + "/"
	var deps strings.Builder // for modprobe
	for _, m := range all {
		c.file(dir+m.name+".ko", 0o644, m.data)
		fmt.Fprintf(&deps, "%s.ko:", m.name)
		for _, d := range m.deps {
			if d = moduleName(d); !tree.builtin[d] {
				fmt.Fprintf(&deps, " %s.ko", d)
			}
		}
		deps.WriteByte('\n')
	}
	c.file(dir+"modules.dep", 0o644, []byte(deps.String()))
	if r.more != nil {
		if err := r.more(c); err != nil {
			return err
		}
	}
	return c.close()
}

func names(mods []module) []string {
	list := make([]string, len(mods))
	for i, m := range mods {
		list[i] = m.name
	}
	return list
}
