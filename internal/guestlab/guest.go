package guestlab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"vmscope/internal/guestlab/wire"
)

const (
	agentPort = wire.PortName
	qemu      = "qemu-system-x86_64"

	// bootPatience allows for an emulated guest on a machine that does other work as well.
	bootPatience = 4 * time.Minute
	bootAttempts = 3
	raceBytes    = 16 << 10 // of the console's end: several oopses
)

// Guest is a running virtual machine. Its methods may be called from several goroutines.
type Guest struct {
	Agent
	emulator
	cfg      Config
	kernel   *Kernel
	dir      runDir
	bootTime time.Duration
	close    sync.Once
}

// Start boots a guest and returns when it answers. The kernel is fetched first if the cache lacks it. The guest lives
// until Close, or until the calling process ends in whatever way; ctx bounds the start only.
func Start(ctx context.Context, cfg Config) (*Guest, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	src, err := lookupSource(cfg.Kernel)
	if err != nil {
		return nil, err
	}
	if err := require(src.platform.qemu); err != nil {
		return nil, err
	}
	kernel, err := Fetch(ctx, cfg.Kernel)
	if err != nil {
		return nil, err
	}
	rat, err := buildHelper(ctx, src.platform)
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		dir, err := newRunDir()
		if err != nil {
			return nil, err
		}
		g := &Guest{Agent: Agent{name: cfg.Name}, cfg: cfg, kernel: kernel, dir: dir, emulator: emulator{qemu: src.platform.qemu, exited: make(chan struct{})}}
		if err = g.start(ctx, rat); err == nil {
			return g, nil
		}
		again := attempt < bootAttempts && lostRace(lastBytes(g.dir.consoleLog(), raceBytes))
		err = fmt.Errorf("guestlab: boot %s: %w%s", cfg.Kernel, err, g.tail())
		g.Close()
		if !again {
			return nil, err
		}
		fmt.Fprintf(os.Stdout, "guestlab: booted again: the emulator ran a breakpoint that the guest's kernel had taken back: %v\n", err)
	}
}

// lostRace tells from what a guest's console said whether its kernel died of a fault of QEMU's software emulation: one
// processor runs the breakpoint of a text_poke (arch/x86/kernel/alternative.c) out of a block that was translated before
// another took it back, and by then nobody claims it. With two loaded processors it ends one boot in some 50.
func lostRace(console []byte) bool {
	return bytes.Contains(console, []byte("int3: 0000 [#")) && bytes.Contains(console, []byte("Kernel panic"))
}

func (g *Guest) start(ctx context.Context, rat string) error {
	ctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	initrd, err := os.Create(g.dir.initrd())
	if err != nil {
		close(g.exited)
		return err
	}
	w := bufio.NewWriterSize(initrd, 1<<20)
	if err = writeInitramfs(w, g.kernel, &g.cfg, rat); err == nil {
		err = w.Flush()
	}
	if err = errors.Join(err, initrd.Close()); err != nil {
		close(g.exited)
		return err
	}
	for _, d := range g.cfg.Disks {
		if d.Log == "" {
			continue
		}
		if err := os.WriteFile(d.Log, nil, 0o644); err != nil { // QEMU opens it and makes none
			close(g.exited)
			return err
		}
	}
	began := time.Now()
	launch := func() error { return g.launch(g.dir.qemuLog(), g.cfg.qemuArgs(g.kernel.Image(), g.dir)...) }
	if g.cfg.Libvirt {
		launch = func() error { return g.create(ctx) }
	}
	if err := launch(); err != nil {
		return err
	}
	if g.line, err = dialLine(ctx, g.dir.agentSocket(), g.exited); err != nil {
		return err
	}
	if err := g.WaitReady(ctx); err != nil {
		return err
	}
	g.bootTime = time.Since(began)
	return nil
}

// Close kills QEMU and removes the guest's files. It may be called more than once.
func (g *Guest) Close() error {
	g.close.Do(func() {
		if g.line != nil {
			g.line.close()
		}
		if g.pid != 0 && g.cfg.Libvirt {
			select {
			case <-g.exited:
			default:
				g.destroy()
			}
			<-g.exited
		}
		g.kill()
		g.dir.remove()
	})
	return nil
}

// Exited is closed when QEMU is gone: by Close, by a power-off or panic inside, or by someone else's signal.
func (g *Guest) Exited() <-chan struct{} { return g.exited }

// Dir is the directory with the guest's sockets, logs and RAM. Close removes it with all that is in it.
func (g *Guest) Dir() string { return g.dir.path }

// PID is QEMU's process ID on the host.
func (g *Guest) PID() int { return g.pid }

// Name is QEMU's -name.
func (g *Guest) Name() string { return g.cfg.Name }

// Config is the configuration, with its defaults filled in.
func (g *Guest) Config() Config { return g.cfg }

// Kernel is the kernel that the guest booted.
func (g *Guest) Kernel() *Kernel { return g.kernel }

// RAMFile is the path of the RAM file, or "" if the guest's RAM is none (see Config.RAM). Its layout is the machine's:
// on q35 RAM above the hole below 4 GiB follows directly.
func (g *Guest) RAMFile() string {
	if g.cfg.RAM != SharedFile || g.cfg.Libvirt {
		return ""
	}
	return g.dir.ram()
}

// QMPSocket is the path of the QMP socket, or "" with Config.NoQMP and Config.Libvirt. It serves one client at a time.
func (g *Guest) QMPSocket() string {
	if g.cfg.NoQMP || g.cfg.Libvirt {
		return ""
	}
	return g.dir.qmpSocket()
}

// ConsoleSocket is the path of the serial console's socket: a shell, for people (socat - UNIX:path). Use Run in programs.
func (g *Guest) ConsoleSocket() string { return g.dir.consoleSocket() }

// ConsoleLog is the path of the file with all that the serial console printed.
func (g *Guest) ConsoleLog() string { return g.dir.consoleLog() }

// BootTime is the time from QEMU's start to the guest's first answer.
func (g *Guest) BootTime() time.Duration { return g.bootTime }

// tail describes the last that QEMU and the console said, for error messages.
func (g *Guest) tail() string {
	var b bytes.Buffer
	for _, f := range []struct{ what, name string }{{"QEMU", g.dir.qemuLog()}, {"console", g.dir.consoleLog()}} {
		if text := lastBytes(f.name, 3000); len(text) > 0 {
			fmt.Fprintf(&b, "\n--- end of what %s said:\n%s", f.what, text)
		}
	}
	return b.String()
}

func lastBytes(name string, n int64) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > n {
		f.Seek(-n, io.SeekEnd)
	}
	text, _ := io.ReadAll(f)
	return bytes.TrimSpace(text)
}
