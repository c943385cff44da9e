package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vmscope/internal/guestlab"
)

// state describes a running guest; it is printed and kept in the guest's run directory for the other commands.
type state struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`     // QEMU
	Owner   int    `json:"owner"`   // the lab process that keeps it; SIGTERM ends both
	Kernel  string `json:"kernel"`  // short name
	Release string `json:"release"` // uname -r
	QMP     string `json:"qmp,omitempty"`
	RAM     string `json:"ram,omitempty"`
	Console string `json:"console"`
	Log     string `json:"log"`
	Control string `json:"control"`
	BootMS  int64  `json:"boot_ms"`
}

const stateFile = "state.json"

func (s state) print() {
	fmt.Printf("name     %s\npid      %d\nkernel   %s\n", s.Name, s.PID, s.Release)
	if s.QMP != "" {
		fmt.Printf("qmp      %s\n", s.QMP)
	}
	if s.RAM != "" {
		fmt.Printf("ram      %s\n", s.RAM)
	}
	fmt.Printf("console  %s\nlog      %s\nboot     %d ms\n", s.Console, s.Log, s.BootMS)
}

// readyFD is where a background child reports its state to the command that started it.
const readyFD = 3

func boot(ctx context.Context, args []string) error {
	cfg := guestlab.Config{Kernel: args[0]}
	var ram, pidfile, script string
	var background, child, load bool
	var stay time.Duration
	fl := flag.NewFlagSet("lab boot KERNEL", flag.ContinueOnError)
	fl.StringVar(&cfg.Name, "name", "", "QEMU's -name and the host name")
	fl.IntVar(&cfg.MemoryMiB, "mem", 512, "memory in MiB")
	fl.IntVar(&cfg.CPUs, "cpus", 1, "number of virtual processors")
	fl.StringVar(&cfg.CPUModel, "cpu", "", `processor model; "max" brings 5-level paging`)
	fl.StringVar(&cfg.Machine, "machine", "", "q35 or pc")
	fl.StringVar(&ram, "ram", "shared", "how QEMU holds the RAM: shared, memfd or anon")
	fl.StringVar(&cfg.Append, "append", "", "more kernel command line")
	fl.Func("disk", "raw `image` to attach; may be given for several", func(path string) error {
		cfg.Disks = append(cfg.Disks, guestlab.Disk{Path: path})
		return nil
	})
	fl.Func("qemu", "one more `argument` for QEMU; may be given several times", func(arg string) error {
		cfg.QEMUArgs = append(cfg.QEMUArgs, arg)
		return nil
	})
	fl.BoolVar(&cfg.NoQMP, "no-qmp", false, "no QMP socket")
	fl.BoolVar(&cfg.Libvirt, "libvirt", false, "have libvirt start QEMU")
	fl.BoolVar(&cfg.AllowReboot, "reboot", false, "let the guest reboot")
	fl.BoolVar(&load, "load", false, "fork storms and module loading inside, until the end")
	fl.DurationVar(&stay, "for", 0, "end after this time")
	fl.StringVar(&script, "run", "", "run this script in the guest, print its output, and end (unless --for or --background)")
	fl.BoolVar(&background, "background", false, "return when the guest is up; `lab stop NAME` ends it")
	fl.StringVar(&pidfile, "pidfile", "", "write the pid of the keeping lab process here")
	fl.BoolVar(&child, "child", false, "internal: report on a pipe")
	if strings.HasPrefix(args[0], "-") {
		fl.Usage()
		return errUsage
	}
	if err := fl.Parse(args[1:]); err != nil {
		return err
	}
	if fl.NArg() > 0 {
		return fmt.Errorf("argument %q not understood", fl.Arg(0))
	}
	var err error
	if cfg.RAM, err = guestlab.ParseRAM(ram); err != nil {
		return err
	}
	if !cfg.Libvirt && len(cfg.Disks) > 0 { // the first by QEMU's old -drive, as many people's machines have it
		cfg.Disk, cfg.Disks = cfg.Disks[0].Path, cfg.Disks[1:]
	}
	if background && !child {
		return detach(args)
	}
	g, err := guestlab.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer g.Close()
	s := state{g.Name(), g.PID(), os.Getpid(), g.Kernel().Name, g.Kernel().Release, g.QMPSocket(), g.RAMFile(),
		g.ConsoleSocket(), g.ConsoleLog(), filepath.Join(g.Dir(), "control.sock"), g.BootTime().Milliseconds()}
	if err := serve(ctx, &g.Agent, s.Control); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(g.Dir(), stateFile), s); err != nil {
		return err
	}
	if pidfile != "" {
		if err := os.WriteFile(pidfile, []byte(strconv.Itoa(s.Owner)+"\n"), 0o644); err != nil {
			return err
		}
		defer os.Remove(pidfile)
	}
	if child {
		ready := os.NewFile(readyFD, "ready")
		if err := json.NewEncoder(ready).Encode(s); err != nil {
			return err
		}
		ready.Close()
	} else if script == "" {
		s.print()
	}
	if load {
		if _, err := g.Run(ctx, loadScript); err != nil {
			return err
		}
	}
	if script != "" {
		out, err := g.Run(ctx, script)
		os.Stdout.WriteString(out)
		if err = scriptError(err); err != nil || (stay == 0 && !child) {
			return err
		}
	}
	return wait(ctx, g, stay)
}

const loadScript = `rat storm 2 1000000 >/dev/null 2>&1 &
rat modstorm 1000000 dummy ifb macvlan >/dev/null 2>&1 &`

// scriptError passes a script's own status on as this program's, with what the script said on standard error.
func scriptError(err error) error {
	var exit *guestlab.ExitError
	if errors.As(err, &exit) {
		os.Stderr.Write(exit.Stderr)
		return exitStatus(exit.Status)
	}
	return err
}

func wait(ctx context.Context, g *guestlab.Guest, stay time.Duration) error {
	var timeout <-chan time.Time
	if stay > 0 {
		timeout = time.After(stay)
	}
	select {
	case <-ctx.Done():
	case <-timeout:
	case <-g.Exited():
		return errors.New("the guest has ended")
	}
	return nil
}

// detach runs this command again as a process that nobody's terminal or shell ends, and waits until its guest is up.
func detach(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	log, err := os.CreateTemp("", "lab-*.log")
	if err != nil {
		return err
	}
	defer os.Remove(log.Name()) // the child keeps it open
	cmd := exec.Command(self, append([]string{"boot"}, append(args, "--child")...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w} // becomes readyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	w.Close()
	var s state
	if err := json.NewDecoder(bufio.NewReader(r)).Decode(&s); err != nil {
		cmd.Wait()
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("the guest did not come up:\n%s", text)
	}
	s.print()
	return cmd.Process.Release()
}

func writeJSON(name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(text, '\n'), 0o644)
}
