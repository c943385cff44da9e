package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of vmscope",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			version, goVersion := "unknown", "unknown"
			if i, ok := debug.ReadBuildInfo(); ok {
				version, goVersion = i.Main.Version, i.GoVersion
			}
			if a.json {
				return a.object(map[string]string{"version": version, "go": goVersion})
			}
			_, err := fmt.Fprintf(a.out, "vmscope %s (%s)\n", version, goVersion)
			return err
		},
	}
}

func (a *app) manCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIRECTORY",
		Short: "Write the man pages into a directory",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("man needs one DIRECTORY to write into")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Title: "VMSCOPE", Section: "1", Source: "vmscope", Manual: "vmscope"}, args[0])
		},
	}
}
