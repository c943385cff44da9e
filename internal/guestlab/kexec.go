package guestlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Reboot makes the guest boot anew, which Config.AllowReboot must permit, and returns when it answers again.
func (g *Guest) Reboot(ctx context.Context) error {
	if !g.cfg.AllowReboot {
		return errors.New("guestlab: Config.AllowReboot is not set")
	}
	return g.bootAnew(ctx, "reboot -f")
}

// Reset makes the guest boot anew at once, as a loss of power would, which Config.AllowReboot must permit, and returns when it
// answers again. What goes on in the guest ends where it is.
func (g *Guest) Reset(ctx context.Context) error {
	if !g.cfg.AllowReboot {
		return errors.New("guestlab: Config.AllowReboot is not set")
	}
	return g.bootAnew(ctx, "echo b >/proc/sysrq-trigger")
}

// Kexec boots another kernel in the place of the running one, as an upgrade without a reset of the machine does: the
// memory of the old kernel is not cleared. It returns when the guest answers again; Kernel is then the new one.
func (g *Guest) Kexec(ctx context.Context, name string) error {
	k, err := Fetch(ctx, name)
	if err != nil {
		return err
	}
	rat, err := buildHelper(ctx, amd64)
	if err != nil {
		return err
	}
	image, err := os.ReadFile(k.Image())
	if err != nil {
		return err
	}
	var initrd bytes.Buffer
	if err := writeInitramfs(&initrd, k, &g.cfg, rat); err != nil {
		return err
	}
	for path, data := range map[string][]byte{"/tmp/vmlinuz": image, "/tmp/initrd": initrd.Bytes()} {
		if err := g.Put(ctx, path, data, 0o600); err != nil {
			return err
		}
	}
	line := g.cfg.commandLine()
	if err := g.bootAnew(ctx, "rat kexec /tmp/vmlinuz /tmp/initrd '"+line+"'"); err != nil {
		return err
	}
	g.kernel = k
	return nil
}

// bootAnew runs a command that ends the running kernel and waits for the next one.
func (g *Guest) bootAnew(ctx context.Context, command string) error {
	const id = "cat /proc/sys/kernel/random/boot_id"
	before, err := g.Run(ctx, id)
	if err != nil {
		return err
	}
	if _, err := g.Run(ctx, "(sleep 0.2; "+command+") >/dev/console 2>&1 &"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	for ctx.Err() == nil {
		once, cancel := context.WithTimeout(ctx, 3*time.Second)
		now, err := g.Run(once, id)
		cancel()
		if err == nil && now != before {
			return nil
		}
		select {
		case <-g.exited:
			return errGone
		case <-time.After(200 * time.Millisecond):
		}
	}
	return fmt.Errorf("guestlab: the guest did not come back: %w%s", ctx.Err(), g.tail())
}
