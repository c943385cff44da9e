package guestlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"vmscope/internal/guestlab/wire"
)

// XenDomain describes a domain. The zero value of every field but Name and Type is a good default.
type XenDomain struct {
	Name      string
	Type      string   // "pv", "pvh", or, if the host is for that, "hvm"
	Kernel    string   // one of XenConfig.Kernels; default its first
	MemoryMiB int      // default 192
	VCPUs     int      // default 1
	Append    string   // more kernel command line
	Disks     []string // as in xl's disk list (xl-disk-configuration(5)), paths in dom0
	Lines     []string // more lines of xl's configuration
}

// Domain is a running domain. Its Agent is that of the guest inside, which dom0 knows nothing of.
type Domain struct {
	Agent
	ID   int // of the domain
	host *XenHost
	cfg  XenDomain
	port int
}

// domainInittab has the agent on the domain's console, which dom0 carries to the host.
const domainInittab = `::sysinit:/etc/rc
::respawn:/bin/rat agent /dev/hvc0
::ctrlaltdel:/bin/reboot
`

// domainRC keeps the kernel from talking between the agent's frames.
const domainRC = "dmesg -n 1\n"

// domainPatience is how much of the machine's time a domain's boot may take: a PVH domain's processor is emulated twice.
const domainPatience = 5 * time.Minute

// consoleRepeat is when an unanswered call to a domain is sent again: its console loses a byte now and then.
const consoleRepeat = 4 * time.Second

// createAttempts is how often a domain is created before that is an error: xl gives a device's back end ten seconds,
// however loaded the host is.
const createAttempts = 3

// addKernel puts a kernel and a first file system for domains into dom0.
func (h *XenHost) addKernel(ctx context.Context, c *cpioWriter, k *Kernel) error {
	src, err := lookupSource(k.Name)
	if err != nil {
		return err
	}
	rat, err := buildHelper(ctx, src.platform)
	if err != nil {
		return err
	}
	vmlinux, err := k.ELF(ctx)
	if err != nil {
		return err
	}
	if err := c.copy(domainKernel(k.Name), vmlinux, 0o644); err != nil {
		return err
	}
	f, err := os.CreateTemp(h.dir.path, "domain-")
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	root := initramfs{
		kernel: k, rat: rat, name: "domain", inittab: domainInittab, rc: domainRC,
		modules: []string{"xen_blkfront"},
	}
	if err := errors.Join(root.write(w), w.Flush()); err != nil {
		return err
	}
	if h.cfg.HVM {
		if err := c.copy(domainImage(k.Name), k.Image(), 0o644); err != nil {
			return err
		}
	}
	return c.copy(domainInitramfs(k.Name), f.Name(), 0o644)
}

func domainKernel(name string) string    { return "/srv/" + name + "/vmlinux" }
func domainImage(name string) string     { return "/srv/" + name + "/vmlinuz" }
func domainInitramfs(name string) string { return "/srv/" + name + "/initrd" }

// Configuration is xl's (xl.cfg(5)).
func (d *XenDomain) configuration() string {
	var b strings.Builder
	kernel := domainKernel(d.Kernel)
	if d.Type == "hvm" {
		kernel = domainImage(d.Kernel)
		b.WriteString("vga = \"stdvga\"\nvnc = 0\nsdl = 0\nnographic = 1\n")
	}
	fmt.Fprintf(&b, "name = %q\ntype = %q\nkernel = %q\nramdisk = %q\n", d.Name, d.Type, kernel, domainInitramfs(d.Kernel))
	fmt.Fprintf(&b, "extra = %q\n", strings.TrimSpace("console=hvc0 loglevel=4 panic=-1 "+d.Append))
	fmt.Fprintf(&b, "memory = %d\nvcpus = %d\n", d.MemoryMiB, d.VCPUs)
	b.WriteString("on_poweroff = \"destroy\"\non_reboot = \"restart\"\non_crash = \"preserve\"\n")
	if len(d.Disks) > 0 {
		fmt.Fprintf(&b, "disk = [ '%s' ]\n", strings.Join(d.Disks, "', '"))
	}
	for _, l := range d.Lines {
		b.WriteString(l + "\n")
	}
	return b.String()
}

// Create starts a domain and returns when the guest in it answers.
func (h *XenHost) Create(ctx context.Context, cfg XenDomain) (*Domain, error) {
	if cfg.Kernel == "" {
		cfg.Kernel = h.cfg.Kernels[0]
	}
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 192
	}
	if cfg.VCPUs == 0 {
		cfg.VCPUs = 1
	}
	d := &Domain{Agent: Agent{name: "domain " + cfg.Name}, host: h, cfg: cfg}
	if err := h.takePort(d); err != nil {
		return nil, err
	}
	ctx, cancel := h.machine.patience(ctx, domainPatience)
	defer cancel()
	if err := d.create(ctx); err != nil {
		log, _ := h.Run(context.WithoutCancel(ctx), "tail -n 30 "+d.consoleLog()+"; xl dmesg | tail -n 20; cat /var/log/xen/xl-"+cfg.Name+".log")
		err = fmt.Errorf("guestlab: create domain %s: %w\n%s", cfg.Name, err, log)
		d.Destroy(context.WithoutCancel(ctx))
		return nil, err
	}
	return d, nil
}

func (h *XenHost) takePort(d *Domain) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, other := range h.ports {
		if other == nil {
			h.ports[i], d.port = d, i
			return nil
		}
	}
	return fmt.Errorf("guestlab: more than %d domains", maxDomains)
}

func (d *Domain) create(ctx context.Context) error {
	file := "/srv/" + d.cfg.Name + ".cfg"
	if err := d.host.Put(ctx, file, []byte(d.cfg.configuration()), 0o644); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		_, err := d.host.Run(ctx, "rm -f "+d.consoleLog()+"; xl create -q "+file)
		if err == nil {
			return d.connect(ctx, 0)
		}
		if attempt == createAttempts || ctx.Err() != nil || !strings.Contains(err.Error(), "timed out") {
			return err
		}
		fmt.Fprintf(os.Stdout, "guestlab: domain %s is created again: %v\n", d.cfg.Name, err)
	}
}

// Reboot asks the guest to reboot, as "xl reboot" does, and returns when it answers again. It then is a domain of another
// number. Nobody else may use the domain meanwhile.
func (d *Domain) Reboot(ctx context.Context) error {
	ctx, cancel := d.host.machine.patience(ctx, domainPatience)
	defer cancel()
	d.line.close()
	// The next domain's console gets a log, and a relay, of its own. xl gives a guest a minute to hear of it, and fails, which
	// does not keep a slow guest from rebooting.
	script := fmt.Sprintf("%s; rm -f %s; xl reboot %s || true", d.stopRelay(), d.consoleLog(), d.cfg.Name)
	_, err := d.host.Run(ctx, script)
	if err == nil {
		err = d.connect(ctx, d.ID)
	}
	if err != nil {
		log, _ := d.host.Run(context.WithoutCancel(ctx), "xl list; ps | grep '[r]at '; cat /tmp/relay.err; tail -n 30 "+d.consoleLog()+"; xl dmesg | tail -n 20; cat /var/log/xen/xl-"+d.cfg.Name+".log")
		return fmt.Errorf("guestlab: reboot domain %s: %w\n%s", d.cfg.Name, err, log)
	}
	return nil
}

// stopRelay is a command of dom0 that ends what carries the console, and waits until its port is free.
func (d *Domain) stopRelay() string {
	return fmt.Sprintf("while kill $(cat %s) 2>/dev/null; do sleep 0.1; done", d.relayPID())
}

// relayPID is the file of the number of the process that carries the console.
func (d *Domain) relayPID() string { return "/run/" + domainPort(d.port) + ".pid" }

// connect finds the console of the domain of that name whose number is not was, and waits until the agent in it listens
// there; what is sent before is lost.
func (d *Domain) connect(ctx context.Context, was int) error {
	script := fmt.Sprintf(`set -e
until id=$(xl domid %[1]s 2>/dev/null) && [ "$id" != %[5]d ]; do sleep 0.2; done
until grep -qs %[2]q %[3]s; do sleep 1; xl domid %[1]s >/dev/null; done
until tty=$(xenstore-read /local/domain/$id/console/tty 2>/dev/null) && [ -n "$tty" ]; do sleep 0.1; done # empty at first
setsid rat relay %[4]s $tty </dev/null >>/tmp/relay.err 2>&1 &
echo $! >%[6]s
echo $id`, d.cfg.Name, strings.TrimSpace(wire.Listening), d.consoleLog(), domainPort(d.port), was, d.relayPID())
	out, err := d.host.Run(ctx, script)
	if err != nil {
		return err
	}
	if d.ID, err = strconv.Atoi(strings.TrimSpace(out)); err != nil {
		return err
	}
	if d.line, err = dialLine(ctx, d.host.domainSocket(d.port), d.host.machine.exited); err != nil {
		return err
	}
	d.line.repeat = consoleRepeat
	return d.WaitReady(ctx)
}

// consoleLog is where dom0 logs the domain's console.
func (d *Domain) consoleLog() string { return "/var/log/xen/console/guest-" + d.cfg.Name + ".log" }

// Name is the domain's.
func (d *Domain) Name() string { return d.cfg.Name }

// Type is how the domain runs: "pv", "pvh" or "hvm".
func (d *Domain) Type() string { return d.cfg.Type }

// Kernel is the kernel that the domain boots.
func (d *Domain) Kernel() *Kernel { return d.host.kernels[d.cfg.Kernel] }

// Destroy ends the domain as "xl destroy" does, without a word to the guest.
func (d *Domain) Destroy(ctx context.Context) error {
	_, err := d.host.Run(ctx, fmt.Sprintf("xl destroy %s; s=$?; %s; exit $s", d.cfg.Name, d.stopRelay()))
	if d.line != nil {
		d.line.close()
	}
	d.host.mu.Lock()
	d.host.ports[d.port] = nil
	d.host.mu.Unlock()
	return err
}
