package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/watch"
)

func (a *app) replayCmd() *cobra.Command {
	var f watchFlags
	var base string
	var follow bool
	c := &cobra.Command{
		Use:   "replay LOG --base IMAGE [PATH…]",
		Short: "Tell what happened to files, from a recorded log of a disk's writes",
		Long: `replay reads a log of a disk's writes in the format of dm-log-writes (the Linux
device mapper's target, or QEMU's blklogwrites filter), and tells the events that
watch would have told. The base is the disk as it was when the log was begun, as
a raw image; neither is written to.`,
		Example: `  vmscope replay disk.log --base disk.img /etc
  vmscope replay disk.log --base disk.img --follow --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("replay needs a LOG; see '%s --help'", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if base == "" {
				return fmt.Errorf("replay needs --base IMAGE: the disk as it was when the log was begun")
			}
			o, err := f.options(args[1:])
			if err != nil {
				return err
			}
			t := &teller{app: a, flags: &f, bar: newProgress()}
			o.Progress, o.Warn = t.progress, t.warn
			image, err := block.OpenFile(base)
			if err != nil {
				return err
			}
			defer image.Close()
			log, err := logwrites.Open(args[0], image, logwrites.Options{Follow: follow})
			if err != nil {
				return err
			}
			defer log.Close()
			w, err := watch.New([]watch.Disk{{Name: "disk0", Source: watch.FromTap(cmd.Context(), log)}}, o)
			if err != nil {
				return err
			}
			t.follow(cmd.Context(), w, args[1:])
			err = w.Run(cmd.Context(), t.tell)
			t.bar.clear()
			if errors.Is(err, io.EOF) || follow && errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
	f.add(c)
	c.Flags().StringVar(&base, "base", "", "the disk as it was when the log was begun (raw image)")
	c.Flags().BoolVar(&follow, "follow", false, "wait for more at the log's end")
	return c
}
