package guestlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// XenConfig describes a host that runs Xen. The zero value of every field is a good default.
type XenConfig struct {
	Version       string // one of XenVersions; default its first
	MemoryMiB     int    // of the machine; default 1536
	Dom0MemoryMiB int    // default 768
	CPUs          int    // of the machine; default 1
	// Kernels are those that domains can boot; default "bookworm-cloud". Dom0 runs "bookworm": the cloud kernels cannot be
	// dom0.
	Kernels []string
	// Files are more files of dom0, mode 0755: the path there and where it comes from.
	Files map[string]string
	// HVM brings what HVM domains need: their device model, and kernels that unpack themselves. Only cloud kernels do that in
	// bearable time. The machine and dom0 then need more memory.
	HVM bool
	// Spare are modules of dom0 that are not loaded at boot; modprobe finds them.
	Spare []string
}

const dom0Kernel = "bookworm"

func (c XenConfig) withDefaults() XenConfig {
	if c.Version == "" {
		c.Version = xenReleases[0].version
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 1536
	}
	if c.Dom0MemoryMiB == 0 {
		c.Dom0MemoryMiB = 768
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if len(c.Kernels) == 0 {
		c.Kernels = []string{"bookworm-cloud"}
	}
	return c
}

// XenHost is a machine that runs Xen, in QEMU's software emulation: no KVM, nothing installed. Its Agent is dom0's, so
// that Run and Put work there; xl and the other tools are in dom0's path.
type XenHost struct {
	Agent
	cfg     XenConfig
	dir     runDir
	machine emulator
	kernels map[string]*Kernel
	close   sync.Once

	mu    sync.Mutex
	ports [maxDomains]*Domain // by the number of their port; nil: free
}

// maxDomains is how many domains can run at once; each has a port of its own.
const maxDomains = 4

// dom0Inittab has the agent of dom0 and a shell on its console, which Xen's serial line carries.
const dom0Inittab = `::sysinit:/etc/rc
::respawn:/bin/rat agent
hvc0::respawn:-/bin/sh
::ctrlaltdel:/bin/reboot
`

// dom0RC starts what a Xen host has: the store, dom0's entries in it, and the consoles of domains, which it also logs.
// There is no udev: libxl then runs the scripts of devices by itself.
const dom0RC = `export PATH=/bin:/usr/bin
mkdir -p /run/xen /run/xenstored /var/lib/xen /var/lib/xenstored /var/log/xen/console
ln -s /run /var/run
ln -s /run/lock /var/lock
mkdir -p /run/lock
ln -s /proc/self/fd /dev/fd; ln -s fd/0 /dev/stdin; ln -s fd/1 /dev/stdout; ln -s fd/2 /dev/stderr
mount -t xenfs xenfs /proc/xen
xenstored --pid-file /run/xenstored.pid
until xenstore-exists / 2>/dev/null; do sleep 0.1; done
xen-init-dom0
xenconsoled --pid-file=/run/xenconsoled.pid --log=all --log-dir=/var/log/xen/console
`

// dom0Modules talk to the hypervisor for programs, and serve disks.
var dom0Modules = []string{"xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_privcmd", "xenfs"}

// BootXen starts a Xen host for a test and closes it when that ends. Under -short, and where Xen's packages or dom0's
// kernel cannot be had, the test is skipped. Where a program is missing it is skipped, or fails if guests are demanded (see
// SkipOrFail).
func BootXen(tb testing.TB, cfg XenConfig) *XenHost {
	tb.Helper()
	if testing.Short() {
		Skip(tb, "boots Xen; not under -short")
	}
	h, err := StartXen(context.Background(), cfg)
	switch {
	case errors.Is(err, errNotFetched):
		Skip(tb, err.Error())
	case errors.Is(err, ErrMissing):
		SkipOrFail(tb, err.Error())
	case err != nil:
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("the Xen host%s", h.tail())
		}
		h.Close()
	})
	return h
}

// StartXen boots Xen and dom0 and returns when dom0 answers and domains can be created. The host lives until Close, or
// until the calling process ends in whatever way; ctx bounds the start only.
func StartXen(ctx context.Context, cfg XenConfig) (*XenHost, error) {
	cfg = cfg.withDefaults()
	if err := require(qemu); err != nil {
		return nil, err
	}
	tools, err := fetchXen(ctx, cfg.Version, cfg.HVM)
	if err != nil {
		return nil, err
	}
	rat, err := buildHelper(ctx, amd64)
	if err != nil {
		return nil, err
	}
	kernels := map[string]*Kernel{}
	for _, name := range append([]string{dom0Kernel}, cfg.Kernels...) {
		if kernels[name], err = Fetch(ctx, name); err != nil {
			return nil, fmt.Errorf("%w: %w", errNotFetched, err)
		}
	}
	for attempt := 1; ; attempt++ {
		h := &XenHost{Agent: Agent{name: "dom0"}, cfg: cfg, machine: emulator{exited: make(chan struct{})}, kernels: kernels}
		if h.dir, err = newRunDir(); err != nil {
			return nil, err
		}
		if err = h.launch(ctx, tools, rat); err != nil {
			h.Close()
			return nil, fmt.Errorf("guestlab: start Xen: %w", err)
		}
		if err = h.boot(ctx); err == nil {
			return h, nil
		}
		err = fmt.Errorf("guestlab: boot Xen: %w%s", err, h.tail())
		h.Close()
		if attempt == bootAttempts || ctx.Err() != nil {
			return nil, err
		}
		// Nothing but the emulator, Xen and dom0's kernel has run until here.
		fmt.Fprintf(os.Stdout, "guestlab: Xen is booted again: %v\n", err)
	}
}

// launch starts the emulator.
func (h *XenHost) launch(ctx context.Context, tools *xenTools, rat string) error {
	if err := h.writeInitramfs(ctx, tools, rat); err != nil {
		return err
	}
	vmlinux, err := h.kernels[dom0Kernel].ELF(ctx)
	if err != nil {
		return err
	}
	// QEMU parts modules at commas: names without any.
	kernel := filepath.Join(h.dir.path, "dom0")
	if err := os.Symlink(vmlinux, kernel); err != nil {
		return err
	}
	return h.machine.launch(h.dir.qemuLog(), h.qemuArgs(tools, kernel)...)
}

// boot waits until dom0 answers.
func (h *XenHost) boot(ctx context.Context) (err error) {
	ctx, cancel := h.machine.patience(ctx, bootPatience)
	defer cancel()
	if h.line, err = dialLine(ctx, h.dir.agentSocket(), h.machine.exited); err != nil {
		return err
	}
	return h.WaitReady(ctx)
}

// qemuArgs is QEMU's command line. The processor is one with which both Xen and a dom0 get along under emulation, and that
// has nested paging for PVH and HVM domains: richer models make Xen use what QEMU does not emulate.
func (h *XenHost) qemuArgs(x *xenTools, kernel string) []string {
	args := []string{
		"-accel", "tcg,thread=single", "-icount", "shift=1", "-machine", "pc", "-cpu", "qemu64,+svm,+npt",
		"-m", fmt.Sprintf("%dM", h.cfg.MemoryMiB), "-smp", fmt.Sprint(h.cfg.CPUs),
		"-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
		"-kernel", x.hypervisor(),
		"-append", fmt.Sprintf("console=com1 com1=115200,8n1 dom0_mem=%[1]dM,max:%[1]dM loglvl=warning guest_loglvl=warning bootscrub=no", h.cfg.Dom0MemoryMiB),
		"-initrd", kernel + " console=hvc0 quiet loglevel=4 panic=-1," + h.dir.initrd(),
		"-chardev", fmt.Sprintf("socket,id=console,path=%s,server=on,wait=off,logfile=%s", h.dir.consoleSocket(), h.dir.consoleLog()),
		"-serial", "chardev:console",
		"-device", "virtio-serial-pci,id=ports",
		"-chardev", fmt.Sprintf("socket,id=agent,path=%s,server=on,wait=off", h.dir.agentSocket()),
		"-device", "virtserialport,bus=ports.0,chardev=agent,name=" + agentPort,
	}
	for i := range maxDomains {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=domain%d,path=%s,server=on,wait=off", i, h.domainSocket(i)),
			"-device", fmt.Sprintf("virtserialport,bus=ports.0,chardev=domain%d,name=%s", i, domainPort(i)))
	}
	return args
}

func (h *XenHost) domainSocket(i int) string {
	return filepath.Join(h.dir.path, fmt.Sprintf("domain%d.sock", i))
}

func domainPort(i int) string { return fmt.Sprintf("%s.domain%d", agentPort, i) }

// writeInitramfs writes dom0's, with the kernels of domains and their first file systems in it.
func (h *XenHost) writeInitramfs(ctx context.Context, tools *xenTools, rat string) error {
	f, err := os.Create(h.dir.initrd())
	if err != nil {
		return err
	}
	defer f.Close()
	root := initramfs{
		kernel: h.kernels[dom0Kernel], rat: rat, name: "dom0", inittab: dom0Inittab, rc: dom0RC,
		modules: dom0Modules, spare: h.cfg.Spare,
	}
	root.more = func(c *cpioWriter) error {
		for to, from := range h.cfg.Files {
			if err := c.copy(to, from, 0o755); err != nil {
				return err
			}
		}
		for _, name := range h.cfg.Kernels {
			if err := h.addKernel(ctx, c, h.kernels[name]); err != nil {
				return err
			}
		}
		return tools.addTo(c)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err := root.write(w); err != nil {
		return err
	}
	return w.Flush()
}

// Close ends the host with all its domains and removes its files. It may be called more than once.
func (h *XenHost) Close() error {
	h.close.Do(func() {
		if h.line != nil {
			h.line.close()
		}
		h.machine.kill()
		h.dir.remove()
	})
	return nil
}

// Version is Xen's, one of XenVersions.
func (h *XenHost) Version() string { return h.cfg.Version }

// ConsoleSocket is the path of the serial console's socket: Xen's, and a shell of dom0, for people.
func (h *XenHost) ConsoleSocket() string { return h.dir.consoleSocket() }

// ConsoleLog is the path of the file with all that Xen and dom0 printed.
func (h *XenHost) ConsoleLog() string { return h.dir.consoleLog() }

// Dir is the directory with the host's sockets and logs. Close removes it.
func (h *XenHost) Dir() string { return h.dir.path }

// PID is the process ID of the emulator.
func (h *XenHost) PID() int { return h.machine.pid }

// HadTime is how much time the machine has had: however loaded this host is, what takes longer than it should by this measure
// does not come.
func (h *XenHost) HadTime() time.Duration { return h.machine.hadTime() }

// Exited is closed when the emulator is gone.
func (h *XenHost) Exited() <-chan struct{} { return h.machine.exited }

func (h *XenHost) tail() string {
	var b string
	for _, f := range []struct{ what, name string }{{"QEMU", h.dir.qemuLog()}, {"the console", h.dir.consoleLog()}} {
		if text := lastBytes(f.name, 3000); len(text) > 0 {
			b += fmt.Sprintf("\n--- end of what %s said:\n%s", f.what, text)
		}
	}
	return b
}
