//! `shardway man`: the manual page of the command and one section per subcommand's page, as roff.

use super::{Exit, output::Output};
use clap_mangen::Man;
use std::io;

pub(super) fn run(command: &clap::Command, output: &Output) -> Exit {
    match pages(command) {
        Ok(roff) => output.raw(&roff),
        Err(error) => output.fault(&error.to_string(), Exit::Failed),
    }
}

fn pages(command: &clap::Command) -> io::Result<Vec<u8>> {
    let mut command = command.clone();
    command.build();
    let mut roff = Vec::new();
    Man::new(command.clone()).render(&mut roff)?;
    for subcommand in command
        .get_subcommands()
        .filter(|subcommand| subcommand.get_name() != "help")
    {
        let man = Man::new(subcommand.clone());
        man.render_description_section(&mut roff)?;
        man.render_options_section(&mut roff)?;
    }
    Ok(roff)
}
