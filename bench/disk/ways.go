package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"vmscope/block"
	"vmscope/block/nbd"
	"vmscope/block/vhostuser"
)

// kind is how QEMU gets at a disk.
type kind int

const (
	plain kind = iota
	nbdClient
	vhostUser
	mirror
)

// way is one way into a disk. Its command gets the words IMAGE, SOCKET, VMSCOPE, SELF, GUEST and NODE replaced, and is
// ready when it has printed, or when somebody listens at the socket.
type way struct {
	name    string
	kind    kind
	command []string
	ready   string
}

var ways = []way{
	{name: "plain"},
	{name: "plain again"},
	{"nbdkit file", nbdClient, []string{"nbdkit", "-f", "-U", "SOCKET", "file", "IMAGE"}, ""},
	{"our NBD", nbdClient, []string{"SELF", "nbd", "SOCKET", "IMAGE"}, "ready"},
	{"our NBD, watched", nbdClient, []string{"VMSCOPE", "nbd", "--image", "IMAGE", "--socket", "SOCKET", "--watch", "/none"}, "serving"},
	{"vhost-user", vhostUser, []string{"SELF", "vhost-user", "SOCKET", "IMAGE"}, "ready"},
	{"vhost-user, watched", vhostUser, []string{"VMSCOPE", "nbd", "--protocol", "vhost-user", "--image", "IMAGE", "--socket", "SOCKET", "--watch", "/none"}, "serving"},
	{"mirror, watched", mirror, []string{"VMSCOPE", "watch", "GUEST", "/none", "--disk", "NODE"}, "watching"},
}

// qemuArgs is the disk on QEMU's command line, at a slot that gives it its letter in the guest.
func (w *way) qemuArgs(i int, image, socket string) []string {
	device := fmt.Sprintf("virtio-blk-pci,drive=n%d,id=way%d,num-queues=1,queue-size=128,addr=%#x", i, i, 0x10+i)
	switch w.kind {
	case nbdClient:
		return []string{"-blockdev", fmt.Sprintf("driver=nbd,node-name=n%d,server.type=unix,server.path=%s,discard=unmap", i, socket), "-device", device}
	case vhostUser:
		return []string{"-chardev", fmt.Sprintf("socket,id=c%d,path=%s", i, socket),
			"-device", fmt.Sprintf("vhost-user-blk-pci,chardev=c%d,num-queues=1,queue-size=128,addr=%#x", i, 0x10+i)}
	}
	return []string{"-blockdev", fmt.Sprintf("driver=file,node-name=f%d,filename=%s,discard=unmap", i, image),
		"-blockdev", fmt.Sprintf("driver=raw,node-name=n%d,file=f%d,discard=unmap", i, i), "-device", device}
}

// process is what stands behind a disk.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// start runs a way's command until it is ready.
func (w *way) start(ctx context.Context, words *strings.Replacer, socket string) (*process, error) {
	args := make([]string, len(w.command))
	for i, a := range w.command {
		args[i] = words.Replace(a)
	}
	cmd := exec.Command(args[0], args[1:]...)
	if w.command[0] == "SELF" {
		cmd = exec.Command(args[0], args[2:]...)
		cmd.Env = append(os.Environ(), serveEnv+"="+args[1])
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, ended: make(chan struct{})}
	said := make(chan struct{})
	var text strings.Builder
	go func() {
		defer close(p.ended)
		told := false
		for s := bufio.NewScanner(stderr); s.Scan(); {
			if told {
				continue
			}
			text.WriteString(s.Text() + "\n")
			if w.ready != "" && strings.Contains(s.Text(), w.ready) {
				told = true
				close(said)
			}
		}
		cmd.Wait()
	}()
	deadline := time.After(20 * time.Second)
	for {
		if w.ready == "" {
			if c, err := net.Dial("unix", socket); err == nil {
				c.Close()
				return p, nil
			}
		}
		select {
		case <-said:
			return p, nil
		case <-p.ended:
			return nil, fmt.Errorf("%s: %q ended: %s", w.name, args, text.String())
		case <-ctx.Done():
			p.stop()
			return nil, ctx.Err()
		case <-deadline:
			p.stop()
			return nil, fmt.Errorf("%s: %q is not ready", w.name, args)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (p *process) stop() {
	p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		p.cmd.Process.Kill()
		<-p.ended
	}
}

// serveEnv makes this program a server that nobody watches: the library without a tap.
const serveEnv = "VMSCOPE_BENCH_SERVE"

func serve(what, socket, image string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	if what == "vhost-user" {
		d, err := block.OpenRaw(image)
		if err != nil {
			return err
		}
		s, err := vhostuser.New(d, vhostuser.Options{Dedicated: true})
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "ready")
		return s.Serve(ctx, ln)
	}
	d, err := nbd.OpenFile(image, false)
	if err != nil {
		return err
	}
	defer d.Close()
	fmt.Fprintln(os.Stderr, "ready")
	s := &nbd.Server{Exports: []nbd.Export{{Device: d}}, Dedicated: true}
	if err := s.Serve(ctx, ln); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
