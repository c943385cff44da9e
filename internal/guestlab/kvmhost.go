package guestlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// KVMHost is a guest in which KVM runs guests of its own: software emulation has AMD's virtualization with nested paging.
// Its QEMU is this machine's. The Agent is the host's, so that Run and Put work there.
type KVMHost struct {
	*Guest
	guests atomic.Int32 // started
}

// kvmPorts is how many guests a KVMHost can have; each has a port of its own.
const kvmPorts = 2

// kvmPatience is how much of the machine's time the boot of a guest in it may take: each exit to KVM is emulated.
const kvmPatience = 5 * time.Minute

func portName(i int) string { return fmt.Sprintf("%s.%d", agentPort, i) }

// BootKVM is Boot for a host with KVM, in which guests of the kernels named can be started. Of the host's configuration
// the processor is set here.
func BootKVM(tb testing.TB, cfg Config, kernels ...string) *KVMHost {
	tb.Helper()
	if testing.Short() {
		Skip(tb, "boots a guest; not under -short")
	}
	if err := cfg.addKVM(tb.Context(), tb.TempDir(), kernels); errors.Is(err, ErrMissing) {
		SkipOrFail(tb, err.Error())
	} else if err != nil {
		tb.Fatal(err)
	}
	return &KVMHost{Guest: Boot(tb, cfg)}
}

// addKVM gives a guest what it needs to be a host. What is made for it goes into dir.
func (c *Config) addKVM(ctx context.Context, dir string, kernels []string) error {
	files, err := installedQEMU(ctx)
	if err != nil {
		return err
	}
	maps.Copy(files, c.Files)
	for _, name := range kernels {
		k, err := Fetch(ctx, name)
		if err != nil {
			return err
		}
		rat, err := buildHelper(ctx, amd64)
		if err != nil {
			return err
		}
		initrd := filepath.Join(dir, name)
		if err := writeGuestInitramfs(initrd, k, rat); err != nil {
			return err
		}
		files[GuestKernel(name)], files[guestInitramfs(name)] = k.Image(), initrd
	}
	c.Files = files
	c.CPUModel = "qemu64,+svm,+npt"
	c.Modules = append(c.Modules, "kvm_amd")
	c.ports = kvmPorts
	return nil
}

func writeGuestInitramfs(path string, k *Kernel, rat string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	return errors.Join(writeInitramfs(w, k, &Config{Name: "guest", platform: amd64}, rat), w.Flush())
}

// firmware is what a QEMU for PCs reads at its start, and where Debian's packages have it.
var firmware = []string{"/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/kvmvapic.bin", "/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/pvh.bin"}

// installedQEMU is this machine's QEMU with the libraries that it loads: each file by its path.
func installedQEMU(ctx context.Context) (map[string]string, error) {
	path, err := exec.LookPath(qemu)
	if err != nil {
		return nil, fmt.Errorf("guestlab: program %s: %w", qemu, ErrMissing)
	}
	files := map[string]string{"/usr/bin/" + qemu: path}
	for _, f := range firmware {
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("guestlab: QEMU's %s: %w", filepath.Base(f), ErrMissing)
		}
		files[f] = f
	}
	out, err := exec.CommandContext(ctx, "ldd", path).Output()
	if err != nil {
		return nil, fmt.Errorf("guestlab: libraries of %s: %w", path, err)
	}
	for line := range strings.Lines(string(out)) {
		for _, field := range strings.Fields(line) { // "NAME => PATH (ADDRESS)"; the loader's is "PATH (ADDRESS)"
			if strings.HasPrefix(field, "/") {
				files[field] = field
			}
		}
	}
	return files, nil
}

// GuestKernel is where a host has the kernel of that name for its guests, as its package brings it.
func GuestKernel(name string) string    { return "/srv/" + name + "/vmlinuz" }
func guestInitramfs(name string) string { return "/srv/" + name + "/initrd" }

// HadTime is how much time the machine has had: however loaded this host is, what takes longer than it should by this measure
// does not come.
func (h *KVMHost) HadTime() time.Duration { return h.hadTime() }

// KVMGuestConfig describes a guest of a KVMHost: what of Config is QEMU's, with paths in the host, and without Libvirt.
type KVMGuestConfig struct {
	Config
	Program string // the name under which QEMU runs; default its own
}

// KVMGuest is a guest that KVM runs in a KVMHost. Its Agent is that of the guest inside.
type KVMGuest struct {
	Agent
	QEMU   int // QEMU's process ID in the host
	kernel *Kernel
}

// Name is QEMU's -name.
func (g *KVMGuest) Name() string { return g.name }

// Kernel is the kernel that the guest booted.
func (g *KVMGuest) Kernel() *Kernel { return g.kernel }

// Start starts a guest and returns when it answers. It lives as long as the host.
func (h *KVMHost) Start(ctx context.Context, cfg KVMGuestConfig) (*KVMGuest, error) {
	c, err := cfg.Config.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.Program == "" {
		cfg.Program = qemu
	}
	port := int(h.guests.Add(1) - 1)
	if port >= kvmPorts || c.Libvirt || !c.platform.pc() {
		return nil, fmt.Errorf("guestlab: guest %d of a host, %s: %w", port+1, c.Kernel, errors.ErrUnsupported)
	}
	ctx, cancel := h.patience(ctx, kvmPatience)
	defer cancel()
	dir := runDir{path: "/run/" + c.Name}
	g := &KVMGuest{Agent: Agent{name: c.Name}}
	if g.kernel, err = Fetch(ctx, c.Kernel); err != nil {
		return nil, err
	}
	if err := g.start(ctx, h, &c, cfg.Program, dir, port); err != nil {
		log, _ := h.Run(context.WithoutCancel(ctx), fmt.Sprintf("tail -n 30 %s %s; dmesg | tail -n 20", dir.qemuLog(), dir.consoleLog()))
		return nil, fmt.Errorf("guestlab: boot %s in %s: %w\n%s", c.Name, h.name, err, log)
	}
	return g, nil
}

func (g *KVMGuest) start(ctx context.Context, h *KVMHost, c *Config, program string, dir runDir, port int) error {
	device, err := h.Run(ctx, fmt.Sprintf("grep -lx %s /sys/class/virtio-ports/*/name", portName(port)))
	if err != nil {
		return err
	}
	// The host's port is both ends of a pipe to QEMU.
	c.agent = "pipe,path=/dev/" + filepath.Base(filepath.Dir(strings.TrimSpace(device)))
	c.accel = "kvm"
	args := c.qemuArgs(GuestKernel(c.Kernel), dir)
	args[slices.Index(args, "-initrd")+1] = guestInitramfs(c.Kernel)
	for i, a := range args {
		args[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	out, err := h.Run(ctx, fmt.Sprintf(`mkdir -p %s; cd /usr/bin
[ -e %[2]s ] || ln %[3]s %[2]s
setsid %[2]s %[4]s </dev/null >%[5]s 2>&1 &
echo $!`, dir.path, program, qemu, strings.Join(args, " "), dir.qemuLog()))
	if err != nil {
		return err
	}
	if g.QEMU, err = strconv.Atoi(strings.TrimSpace(out)); err != nil {
		return err
	}
	if g.line, err = dialLine(ctx, h.Guest.dir.portSocket(port), h.Exited()); err != nil {
		return err
	}
	return g.WaitReady(ctx)
}
